package dev.kvasir.examples.options;

/** How results are written. */
public enum OutputFormat {
  /** A Markdown table. */
  MD,
  /** JSON. */
  JSON
}
