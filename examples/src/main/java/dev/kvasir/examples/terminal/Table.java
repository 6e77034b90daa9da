package dev.kvasir.examples.terminal;

import java.util.ArrayList;
import java.util.List;

/** Rows of text under a header; numbers stand on the right of their column. */
public final class Table {
  private final List<String> header;
  private final List<List<String>> rows = new ArrayList<>();

  /** A table without rows. */
  public Table(String... header) {
    this.header = List.of(header);
  }

  /** Adds a row with one text per column. */
  public Table row(Object... cells) {
    if (cells.length != header.size()) {
      throw new IllegalArgumentException(cells.length + " cells for " + header.size() + " columns");
    }
    var row = new ArrayList<String>();
    for (Object cell : cells) {
      row.add(String.valueOf(cell));
    }
    rows.add(row);
    return this;
  }

  /** Aligned by spaces, for a terminal. */
  public String toText() {
    var text = new StringBuilder();
    int[] widths = widths();
    line(text, header, widths, "  ", "", "");
    for (var row : rows) {
      line(text, row, widths, "  ", "", "");
    }
    return text.toString();
  }

  /** As a Markdown table. */
  public String toMarkdown() {
    var text = new StringBuilder();
    int[] widths = widths();
    line(text, header, widths, " | ", "| ", " |");
    text.append('|');
    for (int c = 0; c < widths.length; c++) {
      text.append(
          rightAligned(c)
              ? " " + "-".repeat(Math.max(2, widths[c] - 1)) + ": |"
              : " " + "-".repeat(Math.max(3, widths[c])) + " |");
    }
    text.append('\n');
    for (var row : rows) {
      line(text, row, widths, " | ", "| ", " |");
    }
    return text.toString();
  }

  private int[] widths() {
    int[] widths = new int[header.size()];
    for (int c = 0; c < widths.length; c++) {
      widths[c] = Math.max(3, header.get(c).length());
      for (var row : rows) {
        widths[c] = Math.max(widths[c], row.get(c).length());
      }
    }
    return widths;
  }

  private void line(
      StringBuilder text,
      List<String> cells,
      int[] widths,
      String between,
      String before,
      String after) {
    var line = new StringBuilder(before);
    for (int c = 0; c < widths.length; c++) {
      String cell = cells.get(c);
      String padding = " ".repeat(widths[c] - cell.length());
      line.append(c == 0 ? "" : between).append(rightAligned(c) ? padding + cell : cell + padding);
    }
    text.append((line + after).stripTrailing()).append('\n');
  }

  private boolean rightAligned(int column) {
    return !rows.isEmpty() && rows.stream().allMatch(row -> numeric(row.get(column)));
  }

  private static boolean numeric(String cell) {
    return cell.isEmpty()
        || cell.equals("-")
        || Character.isDigit(cell.charAt(0))
        || (cell.length() > 1 && cell.charAt(0) == '-' && Character.isDigit(cell.charAt(1)));
  }
}
