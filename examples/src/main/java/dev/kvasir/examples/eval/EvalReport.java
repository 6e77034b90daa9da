package dev.kvasir.examples.eval;

import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvasir.examples.terminal.Table;
import dev.kvasir.examples.terminal.Units;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.ToDoubleFunction;

/** The quality table, for people or for scripts. */
final class EvalReport {
  private EvalReport() {}

  static String markdown(Task task, List<EvalRow> rows) {
    var header =
        new ArrayList<>(
            List.of(
                "method",
                "types",
                "target",
                "bytes",
                "kept",
                "mean KL",
                "95% CI",
                "p99",
                "same top-1",
                "95% CI"));
    header.addAll(
        switch (task) {
          case TEXT -> List.of();
          case CODES -> List.of("found");
          case GENERATE -> List.of("same answer", "distinct 3-grams", "full cache's");
        });
    var table = new Table(header.toArray(String[]::new));
    for (var row : rows) {
      var cells =
          new ArrayList<Object>(
              List.of(
                  row.what().method(),
                  row.what().types().label(),
                  row.what().target(),
                  Units.percent(row.bytes()),
                  Units.percent(row.keptAfterPrompt()),
                  Units.decimal(row.divergence().mean(), 5),
                  interval(row.divergence(), 1, 5),
                  Units.decimal(row.divergence99(), 4),
                  Units.percent(row.sameTop().mean()),
                  interval(row.sameTop(), 100, 1)));
      var runs = row.freeRuns();
      switch (task) {
        case TEXT -> {}
        case CODES -> cells.add(row.found() + " of " + row.answered());
        case GENERATE -> {
          cells.add(
              runs.stream().filter(FreeRun::agrees).count()
                  + " of "
                  + runs.stream().filter(FreeRun::answered).count());
          cells.add(Units.decimal(mean(runs, FreeRun::distinct), 3));
          cells.add(Units.decimal(mean(runs, FreeRun::fullDistinct), 3));
        }
      }
      table.row(cells.toArray());
    }
    return table.toMarkdown() + "\n" + comparisons(rows);
  }

  private static double mean(List<FreeRun> runs, ToDoubleFunction<FreeRun> value) {
    return runs.stream().mapToDouble(value).average().orElse(Double.NaN);
  }

  /**
   * Every row against H2O at the same target with the same types, text by text: the texts' own
   * difficulty drops out.
   */
  private static String comparisons(List<EvalRow> rows) {
    var table =
        new Table("KL difference to h2o, paired by text", "types", "target", "mean", "95% CI");
    boolean any = false;
    for (var row : rows) {
      var h2o =
          rows.stream()
              .filter(
                  other ->
                      other.what().method().equals("h2o")
                          && other.what().types().equals(row.what().types())
                          && other.what().target().equals(row.what().target()))
              .findFirst();
      if (h2o.isPresent() && row != h2o.get()) {
        double[] difference = row.divergences();
        double[] other = h2o.get().divergences();
        Arrays.setAll(difference, i -> difference[i] - other[i]);
        var estimate = Estimate.of(difference);
        table.row(
            row.what().method(),
            row.what().types().label(),
            row.what().target(),
            Units.decimal(estimate.mean(), 5),
            interval(estimate, 1, 5));
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

  /**
   * All rows as JSON.
   *
   * @param settings what they have in common; the rows are added to it
   */
  static String json(ObjectNode settings, List<EvalRow> rows) {
    var array = settings.putArray("rows");
    for (var row : rows) {
      var node = array.addObject();
      node.put("method", row.what().method());
      node.put("types", row.what().types().label());
      node.put("target", row.what().target());
      node.put("bytes", row.bytes());
      node.put("keptAfterPrompt", row.keptAfterPrompt());
      node.put("keptAtEnd", row.keptAtEnd());
      estimate(node.putObject("meanKl"), row.divergence());
      node.put("klP99", row.divergence99());
      estimate(node.putObject("sameTop1"), row.sameTop());
      var perText = node.putArray("klPerText");
      for (double divergence : row.divergences()) {
        perText.add(divergence);
      }
      if (row.answered() > 0) {
        node.put("answered", row.answered()).put("found", row.found());
      }
      var runs = row.freeRuns();
      if (!runs.isEmpty()) {
        node.put("answered", runs.stream().filter(FreeRun::answered).count());
        node.put("sameAnswer", runs.stream().filter(FreeRun::agrees).count());
        node.put("distinct", mean(runs, FreeRun::distinct));
        node.put("fullDistinct", mean(runs, FreeRun::fullDistinct));
      }
    }
    return settings.toPrettyString();
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
