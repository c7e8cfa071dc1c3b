/**
 * One question at a time: what is wanted while one is under way is asked once more behind it, for its
 * answer may be of before.
 */
export class Asking {
  private underway = false;
  private again = false;

  /** `ask` does not fail. */
  constructor(private readonly ask: () => Promise<void>) {}

  async wanted(): Promise<void> {
    this.again = true;
    if (this.underway) {
      return;
    }
    this.underway = true;
    while (this.again) {
      this.again = false;
      await this.ask();
    }
    this.underway = false;
  }
}
