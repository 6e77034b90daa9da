package dev.kvasir.examples.bench;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvasir.examples.terminal.Table;
import dev.kvasir.examples.terminal.Units;
import java.util.List;
import java.util.Locale;
import java.util.OptionalLong;

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
            "device",
            "policy",
            "test",
            "t/s",
            "range",
            "x llama.cpp",
            "kept",
            "slots",
            "KV",
            "RSS",
            "GPU");
    for (var row : rows) {
      table.row(
          row.engine(),
          row.device(),
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
          bytes(row.rssBytes()),
          bytes(row.deviceBytes()));
    }
    return table.toMarkdown();
  }

  private static String bytes(OptionalLong bytes) {
    return bytes.isPresent() ? Units.bytes(bytes.getAsLong()) : "-";
  }

  /**
   * An array with one object per row; {@code rssBytes} is null where the operating system does not
   * tell, {@code deviceBytes} without a GPU.
   */
  static String json(List<BenchRow> rows) {
    ArrayNode array = JsonNodeFactory.instance.arrayNode();
    for (var row : rows) {
      var node = array.addObject();
      node.put("engine", row.engine());
      node.put("test", row.test());
      node.put("policy", row.policy());
      node.put("device", row.device());
      node.put("sequences", row.sequences());
      node.put("keptFraction", row.keptFraction());
      node.put("kvBytes", row.kvBytes());
      put(node, "rssBytes", row.rssBytes());
      put(node, "deviceBytes", row.deviceBytes());
      var rates = node.putArray("tokensPerSecond");
      for (double rate : row.tokensPerSecond()) {
        rates.add(Double.parseDouble(String.format(Locale.ROOT, "%.3f", rate)));
      }
    }
    return array.toPrettyString();
  }

  private static void put(ObjectNode node, String name, OptionalLong value) {
    if (value.isPresent()) {
      node.put(name, value.getAsLong());
    } else {
      node.putNull(name);
    }
  }
}
