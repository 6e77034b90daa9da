package dev.kvasir.examples.bench;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import dev.kvasir.examples.terminal.Table;
import dev.kvasir.examples.terminal.Units;
import java.util.List;
import java.util.Locale;

/** The rows of a benchmark, for people or for scripts. */
final class BenchReport {
  private BenchReport() {}

  /**
   * A Markdown table: medians with the slowest and fastest repeat, and how they compare to
   * llama.cpp's median of the same test.
   */
  static String markdown(List<BenchRow> rows) {
    var table =
        new Table(
            "engine",
            "policy",
            "test",
            "t/s",
            "range",
            "x llama.cpp",
            "kept",
            "slots",
            "KV",
            "RSS");
    for (var row : rows) {
      table.row(
          row.engine(),
          row.policy(),
          row.test(),
          Units.decimal(row.median(), 1),
          Units.decimal(row.slowest(), 1) + " - " + Units.decimal(row.fastest(), 1),
          rows.stream()
              .filter(
                  other -> other.test().equals(row.test()) && other.engine().equals("llama.cpp"))
              .findFirst()
              .map(stock -> Units.decimal(row.median() / stock.median(), 2))
              .orElse("-"),
          Units.percent(row.keptFraction()),
          row.keptSlots(),
          Units.bytes(row.kvBytes()),
          row.rssBytes().isPresent() ? Units.bytes(row.rssBytes().getAsLong()) : "-");
    }
    return table.toMarkdown();
  }

  /**
   * An array with one object per row; {@code rssBytes} is null where the operating system does not
   * tell.
   */
  static String json(List<BenchRow> rows) {
    ArrayNode array = JsonNodeFactory.instance.arrayNode();
    for (var row : rows) {
      var node = array.addObject();
      node.put("engine", row.engine());
      node.put("test", row.test());
      node.put("policy", row.policy());
      node.put("keptFraction", row.keptFraction());
      node.put("kvBytes", row.kvBytes());
      if (row.rssBytes().isPresent()) {
        node.put("rssBytes", row.rssBytes().getAsLong());
      } else {
        node.putNull("rssBytes");
      }
      var rates = node.putArray("tokensPerSecond");
      for (double rate : row.tokensPerSecond()) {
        rates.add(Double.parseDouble(String.format(Locale.ROOT, "%.3f", rate)));
      }
    }
    return array.toPrettyString();
  }
}
