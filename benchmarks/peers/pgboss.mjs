// pg-boss. Options: boss (its constructor's), queue (createQueue's), work (work's).
import pg from "pg";
import { PgBoss } from "pg-boss";
import { beat, chunks, command, meter, options, timed, url } from "./meter.mjs";

const INSERT = "INSERT INTO effect (n) VALUES ($1)";
const boss = new PgBoss({ connectionString: url, max: 20, ...options.boss });
boss.on("error", console.error);
await boss.start();

if (command === "work") {
  const start = meter();
  const effects = new pg.Pool({ connectionString: url, max: 10 });
  const noop = async (jobs) => jobs.forEach((job) => start(job.data));
  const effect = async (jobs, tx) => {
    const insert = tx ? (n) => tx.executeSql(INSERT, [n]) : (n) => effects.query(INSERT, [n]);
    await Promise.all(
      jobs.map((job) => {
        start(job.data);
        return insert(job.data.n);
      }),
    );
  };
  await boss.work("job", options.work, options.handler === "effect" ? effect : noop);
} else {
  if (command === "setup") {
    await boss.createQueue("job", options.queue);
  } else if (command === "send") {
    await beat((args) => boss.send("job", args));
  } else if (command === "one") {
    await timed(async () => {
      for (let n = 0; n < options.jobs; n += 1) await boss.send("job", { n });
    });
  } else {
    await timed(async () => {
      for (const chunk of chunks()) {
        await boss.insert("job", chunk.map((data) => ({ data })), { returnId: options.ids ?? false });
      }
    });
    // the counts of a queue are looked at once a minute, and decide whether a worker fetches without a pause
    if (command === "fill") await boss.supervise("job");
  }
  await boss.stop({ graceful: false });
  process.exit(0);
}
