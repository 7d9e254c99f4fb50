/**
 * The browser's storages, for pages that work without them.
 *
 * Where a visitor blocks the data of sites, naming a storage throws; in some browsers it is null, and in some it takes
 * nothing. A stand-in then keeps everything for as long as the page is open, and `lasting` says that nothing stays.
 */

/** @import { Area } from "../client.js" */

/** Keeps strings by their names until the page is left. @implements {Area} */
class Memory {
  /** @type {Map<string, string>} */ #kept = new Map();

  getItem(/** @type {string} */ key) {
    return this.#kept.get(key) ?? null;
  }

  setItem(/** @type {string} */ key, /** @type {string} */ value) {
    this.#kept.set(key, value);
  }

  removeItem(/** @type {string} */ key) {
    this.#kept.delete(key);
  }
}

/** A storage that this page may use; null where there is none. @param {"localStorage" | "sessionStorage"} name @returns {Area | null} */
function usable(name) {
  const probe = "gateway-probe";
  try {
    const area = window[name];
    try {
      area.setItem(probe, probe);
      area.removeItem(probe);
    } catch (error) {
      if (!isFull(error) || !area.length) return null; // a full one can be read, and room can be made
    }
    return area;
  } catch {
    return null;
  }
}

const [own, shared] = [usable("sessionStorage"), usable("localStorage")];

/** Kept for this tab. @type {Area} */
export const session = own ?? new Memory();
/** Kept for all tabs. @type {Area} */
export const local = shared ?? new Memory();
/** Whether conversations stay when the page is left. */
export const lasting = Boolean(shared);

/** Whether a storage refused for lack of room. */
export function isFull(/** @type {unknown} */ error) {
  return error instanceof DOMException && /quota/i.test(error.name);
}

/** null where nothing is kept under this name. @param {Area} area @param {string} key */
export function recall(area, key) {
  try {
    return area.getItem(key);
  } catch {
    return null;
  }
}

/** Keeps a value; what it says where that failed, null where it did not. @param {Area} area @param {string} key @param {string} value @returns {unknown} */
export function remember(area, key, value) {
  try {
    area.setItem(key, value);
    return null;
  } catch (error) {
    return error;
  }
}

/** @param {Area} area @param {string} key */
export function forget(area, key) {
  try {
    area.removeItem(key);
  } catch {
    return; // a storage that is denied keeps nothing
  }
}
