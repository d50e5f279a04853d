// graphile-worker: `setup DSN`, `enqueue DSN N` or `work DSN`, with the settings of its page on performance.
import { makeWorkerUtils, run } from "graphile-worker";

const [command, connectionString, jobs = "0"] = process.argv.slice(2);

if (command === "work") {
  const runner = await run({
    preset: {
      worker: {
        connectionString,
        concurrentJobs: 24,
        maxPoolSize: 25,
        localQueue: { size: 500 },
        completeJobBatchDelay: 0,
        failJobBatchDelay: 0,
      },
    },
    taskList: {
      effect: async ({ n }, helpers) => {
        await helpers.query("INSERT INTO effect (n) VALUES ($1)", [n]);
      },
    },
  });
  await runner.promise;
} else {
  const utils = await makeWorkerUtils({ connectionString });
  await utils.migrate();
  if (command === "enqueue") {
    await utils.addJobs(Array.from({ length: Number(jobs) }, (_, n) => ({ identifier: "effect", payload: { n } })));
  }
  await utils.release();
}
