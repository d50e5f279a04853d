// What the scripts of the Node libraries have in common: meter.py says what. Clocks are the same in all processes.
import { writeSync } from "node:fs";
import { createInterface } from "node:readline";

export const now = () => Number(process.hrtime.bigint()) / 1e9;
export const say = (what) => writeSync(1, `@${JSON.stringify(what)}\n`);
export const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
export const [command, url, options] = [...process.argv.slice(2, 4), JSON.parse(process.argv[4])];

const line = () => new Promise((done) => createInterface({ input: process.stdin }).once("line", done));

export function meter() {
  const seen = new Uint8Array(options.jobs);
  const waits = [];
  let starts = 0;
  line().then(() => say({ starts, distinct: seen.reduce((sum, times) => sum + (times > 0), 0), waits }));
  return ({ n, sent }) => {
    if (sent !== undefined) waits.push([n, now() - sent]);
    seen[n] += 1;
    starts += 1;
    if (starts === 1) say({ first: true });
    if (starts === options.jobs) say({ last: true });
  };
}

export async function beat(send) {
  for (let n = 0; n < options.jobs; n += 1) {
    if (n === options.warm_up) {
      say({ warm: true });
      await line();
    }
    await pause(0.03 + 0.02 * Math.random());
    await send({ n, sent: now() });
  }
}

export async function timed(act) {
  const started = now();
  await act();
  say({ seconds: now() - started });
}

export function* chunks() {
  for (let first = 0; first < options.jobs; first += options.chunk) {
    yield Array.from({ length: Math.min(options.chunk, options.jobs - first) }, (_, index) => ({ n: first + index }));
  }
}
