package dev.kvasir.cache;

/** Which policies FastGen chooses from, per KV head. */
public enum Candidates {
  /**
   * The paper's five (Eq. 2 of arXiv 2310.01801): each adds one kind of token to the one before, in
   * the order of {@link FastGen#order()}, and the last keeps everything.
   */
  PAPER,

  /**
   * All pairs of a frequent fraction and a local window, special tokens always kept, and the full
   * cache. Frequent: 0, .01, .02, .05, .1, .15, .2, .25, .3, .4, .5, .6, .7 or .8 of the current
   * length. Local: 16, 32 or 64 tokens, or .05, .1, .2, .3, .4 or .5 of the prompt.
   */
  LATTICE
}
