// graphile-worker. Options: what its preset calls worker, see its page on performance.
process.env.NO_LOG_SUCCESS = "1";
const { Logger, makeWorkerUtils, run } = await import("graphile-worker");
const { beat, chunks, command, meter, options, timed, url } = await import("./meter.mjs");

const logger = new Logger(() => (level, message) => {
  if (level === "error" || level === "warning") console.error(message);
});

if (command === "work") {
  const start = meter();
  const noop = async (args) => start(args);
  const effect = async (args, helpers) => {
    start(args);
    await helpers.query("INSERT INTO effect (n) VALUES ($1)", [args.n]);
  };
  const preset = { worker: { connectionString: url, ...options.worker } };
  const runner = await run({ preset, logger, taskList: { job: options.handler === "effect" ? effect : noop } });
  await runner.promise;
} else {
  const utils = await makeWorkerUtils({ connectionString: url, logger });
  if (command === "setup") {
    await utils.migrate();
  } else if (command === "send") {
    await beat((args) => utils.addJob("job", args));
  } else if (command === "one") {
    await timed(async () => {
      for (let n = 0; n < options.jobs; n += 1) await utils.addJob("job", { n });
    });
  } else {
    await timed(async () => {
      for (const chunk of chunks()) await utils.addJobs(chunk.map((payload) => ({ identifier: "job", payload })));
    });
  }
  await utils.release();
}
