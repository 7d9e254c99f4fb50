/** The samples of the last minutes, and what is calculated from them. */

/**
 * @typedef {Record<string, number>} Tally
 * @typedef {{t: number, s: number, streams: number, readers: number, cpu: number, rss: number, log: number,
 *   started?: number, events?: number, tokens?: Tally, ended?: Tally, asked?: Tally, lag?: Tally,
 *   errors?: Record<string, Tally>, first?: Record<string, Tally>}} Sample
 */

/** Seconds that are kept and shown. */
export const SPAN = 300;

export class Series {
  /** @type {Sample[]} */ samples = [];

  get newest() {
    return this.samples[this.samples.length - 1];
  }

  /** Ignores a sample that is known already: a new connection sends old ones again. @param {Sample} sample */
  add(sample) {
    if (this.newest && sample.t <= this.newest.t) return;
    this.samples.push(sample);
    const oldest = sample.t - SPAN;
    const gone = this.samples.findIndex(({ t }) => t > oldest);
    if (gone > 0) this.samples.splice(0, gone);
  }

  /** The samples of the last seconds. @param {number} seconds */
  last(seconds) {
    const from = this.newest ? this.newest.t - seconds : 0;
    return this.samples.filter(({ t }) => t > from);
  }

  /** The samples in columns of so many seconds, each with its end; the columns stand still as time goes on. */
  columns(/** @type {number} */ seconds) {
    /** @type {Map<number, Sample[]>} */ const columns = new Map();
    for (const sample of this.samples) {
      const end = Math.ceil(sample.t / seconds) * seconds;
      columns.set(end, [...(columns.get(end) ?? []), sample]);
    }
    return [...columns];
  }
}

/** @param {Sample[]} samples @param {(sample: Sample) => number | undefined} pick */
export const sum = (samples, pick) => samples.reduce((total, sample) => total + (pick(sample) ?? 0), 0);

/** How much of it there was in a second. @param {Sample[]} samples @param {(sample: Sample) => number | undefined} pick */
export const rate = (samples, pick) => sum(samples, pick) / Math.max(0.001, sum(samples, ({ s }) => s));

/** One tally of many. @param {(Tally | undefined)[]} tallies @returns {Tally} */
export function merge(tallies) {
  /** @type {Tally} */ const merged = {};
  for (const tally of tallies) for (const key in tally) merged[key] = (merged[key] ?? 0) + tally[key];
  return merged;
}

/** Everything in a tally together. */
export const total = (/** @type {Tally} */ tally) => Object.values(tally).reduce((all, one) => all + one, 0);

/** First-token times in their buckets, of one upstream or of all. @param {Sample[]} samples @param {string} [upstream] */
export const firsts = (samples, upstream) =>
  merge(samples.flatMap(({ first = {} }) => (upstream === undefined ? Object.values(first) : [first[upstream]])));

/** The buckets of a tally in order, as [lower, upper, count]. @param {Tally} tally */
export function buckets(tally) {
  const parsed = Object.entries(tally).map(([key, count]) => [...key.split(" ").map(bound), count]);
  return parsed.sort(([a], [b]) => a - b);
}

const bound = (/** @type {string} */ text) => (text === "+Inf" ? Infinity : Number(text));

/** The value below which a share of a tally lies, calculated as Prometheus does; NaN for an empty tally. */
export function quantile(/** @type {Tally} */ tally, /** @type {number} */ share) {
  let left = total(tally) * share;
  if (!left) return NaN;
  for (const [lower, upper, count] of buckets(tally)) {
    if (left <= count) return Number.isFinite(upper) ? lower + (upper - lower) * (left / count) : lower;
    left -= count;
  }
  return NaN;
}

/** Outcomes that count as errors: neither the client nor the operator wanted them. */
const BAD = ["upstream_error", "upstream_stalled", "timeout"];

/** Streams that ended, and how many of them badly. @param {Sample[]} samples */
export function endings(samples) {
  const ended = merge(samples.map((sample) => sample.ended));
  return { all: total(ended), bad: BAD.reduce((all, name) => all + (ended[name] ?? 0), 0), ended };
}
