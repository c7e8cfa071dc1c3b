/** The answer to `qcn/state`. */

export interface State {
  readonly version: string;
  readonly model: string;
  readonly roots: readonly Root[];
}

export interface Root {
  readonly uri: string;
  readonly name: string;
  /** Tokens that the model reads of it; none where that has not begun. */
  readonly tokens?: number;
  readonly limit?: number;
}

export interface Fill {
  readonly name: string;
  readonly tokens: number;
  readonly percent: number;
}

/** The workspace folder of which the largest part of what fits is read; undefined where none is. */
export function fullest(state: State | undefined): Fill | undefined {
  const fills = (state?.roots ?? []).flatMap(({ name, tokens, limit }) =>
    tokens !== undefined && limit ? [{ name, tokens, percent: Math.round((100 * tokens) / limit) }] : [],
  );
  return fills.sort((one, other) => other.percent - one.percent)[0];
}
