/** When to give up on a server that keeps on dying: at the fifth crash within three minutes. */

export const MOST_CRASHES = 5;
export const WITHIN_MS = 3 * 60 * 1000;

export class Crashes {
  private times: number[] = [];

  /** Note a crash; returns whether it is one too many. */
  happened(now: number): boolean {
    this.times = [...this.times.filter((time) => now - time < WITHIN_MS), now];
    return this.times.length >= MOST_CRASHES;
  }

  /** Begin anew: the user has asked for another try. */
  forget(): void {
    this.times = [];
  }
}
