package dev.kvasir.examples.eval;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvasir.examples.terminal.Table;
import dev.kvasir.examples.terminal.Units;
import java.util.Arrays;
import java.util.List;

/** The quality table, for people or for scripts. */
final class EvalReport {
  private EvalReport() {}

  static String markdown(List<EvalRow> rows) {
    var table =
        new Table(
            "method",
            "target",
            "kept after prompt",
            "kept at end",
            "mean KL",
            "95% CI",
            "same top-1",
            "95% CI");
    for (var row : rows) {
      table.row(
          row.what().method(),
          row.what().target(),
          Units.percent(row.keptAfterPrompt()),
          Units.percent(row.keptAtEnd()),
          Units.decimal(row.divergence().mean(), 4),
          interval(row.divergence(), 1, 4),
          Units.percent(row.sameTop().mean()),
          interval(row.sameTop(), 100, 1));
    }
    return table.toMarkdown() + "\n" + comparisons(rows);
  }

  /**
   * Every FastGen row against H2O at the same target, text by text: the texts' own difficulty drops
   * out.
   */
  private static String comparisons(List<EvalRow> rows) {
    var table = new Table("KL difference to h2o, paired by text", "target", "mean", "95% CI");
    boolean any = false;
    for (var row : rows) {
      var h2o =
          rows.stream()
              .filter(
                  other ->
                      other.what().method().equals("h2o")
                          && other.what().target().equals(row.what().target()))
              .findFirst();
      if (h2o.isPresent() && row != h2o.get()) {
        double[] difference = row.divergences();
        double[] other = h2o.get().divergences();
        Arrays.setAll(difference, i -> difference[i] - other[i]);
        var estimate = Estimate.of(difference);
        table.row(
            row.what().method(),
            row.what().target(),
            Units.decimal(estimate.mean(), 4),
            interval(estimate, 1, 4));
        any = true;
      }
    }
    return any ? table.toMarkdown() : "";
  }

  private static String interval(Estimate estimate, double scale, int decimals) {
    return Double.isNaN(estimate.halfWidth())
        ? "-"
        : Units.decimal(scale * (estimate.mean() - estimate.halfWidth()), decimals)
            + " .. "
            + Units.decimal(scale * (estimate.mean() + estimate.halfWidth()), decimals);
  }

  static String json(List<EvalRow> rows, int texts, int prompt, int suffix) {
    var root = JsonNodeFactory.instance.objectNode();
    root.put("texts", texts).put("promptTokens", prompt).put("suffixTokens", suffix);
    var array = root.putArray("rows");
    for (var row : rows) {
      var node = array.addObject();
      node.put("method", row.what().method());
      node.put("target", row.what().target());
      node.put("keptAfterPrompt", row.keptAfterPrompt());
      node.put("keptAtEnd", row.keptAtEnd());
      estimate(node.putObject("meanKl"), row.divergence());
      estimate(node.putObject("sameTop1"), row.sameTop());
      var perText = node.putArray("klPerText");
      for (double divergence : row.divergences()) {
        perText.add(divergence);
      }
    }
    return root.toPrettyString();
  }

  private static void estimate(ObjectNode node, Estimate estimate) {
    node.put("mean", estimate.mean());
    if (Double.isNaN(estimate.halfWidth())) {
      node.putNull("halfWidth95");
    } else {
      node.put("halfWidth95", estimate.halfWidth());
    }
  }
}
