package dev.kvasir.examples.chat;

import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.CacheUse;
import dev.kvasir.cache.LayerPlace;
import dev.kvasir.examples.terminal.Table;
import dev.kvasir.examples.terminal.Units;
import java.util.Comparator;
import java.util.Map;

/** What a cache holds, by policy, by layer and by device. */
final class CacheTable {
  private static final int MOST_POLICIES = 12;

  private CacheTable() {}

  static String of(CacheReport report) {
    var policies = new Table("policy", "heads", "kept slots", "of", "kept", "K+V");
    var byPolicy =
        report.byPolicy().entrySet().stream()
            .sorted(Map.Entry.comparingByValue(Comparator.comparingInt(CacheUse::heads).reversed()))
            .toList();
    int named = byPolicy.size() > MOST_POLICIES + 1 ? MOST_POLICIES : byPolicy.size();
    byPolicy.subList(0, named).forEach(entry -> row(policies, entry.getKey(), entry.getValue()));
    byPolicy.subList(named, byPolicy.size()).stream()
        .map(Map.Entry::getValue)
        .reduce(CacheUse::plus)
        .ifPresent(rest -> row(policies, byPolicy.size() - named + " other policies", rest));
    row(policies, "all", report.total());

    var layers = new Table("layer", "heads", "kept slots", "of", "kept", "K+V");
    report.byLayer().forEach((layer, use) -> row(layers, layer.toString(), use));

    return policies.toText()
        + "\n"
        + layers.toText()
        + "\n"
        + places(report).toText()
        + "\n%d tokens; %s in memory; llama.cpp would allocate %s for this context\n"
            .formatted(
                report.tokens(),
                Units.bytes(report.residentBytes()),
                Units.bytes(report.allocatedBytes()));
  }

  /** Consecutive layers on one device are one row. */
  private static Table places(CacheReport report) {
    var table = new Table("layers", "device", "attention", "K+V");
    var uses = report.byLayer();
    var places = report.layers();
    int first = 0;
    long bytes = 0;
    for (int i = 0; i < places.size(); i++) {
      var place = places.get(i);
      bytes += uses.get(place.layer()).bytes();
      if (i + 1 == places.size() || !together(place, places.get(i + 1))) {
        int from = places.get(first).layer();
        table.row(
            from == place.layer() ? "" + from : from + "-" + place.layer(),
            place.device(),
            place.attentionPath(),
            Units.bytes(bytes));
        first = i + 1;
        bytes = 0;
      }
    }
    return table;
  }

  private static boolean together(LayerPlace a, LayerPlace b) {
    return a.device().equals(b.device()) && a.attentionPath().equals(b.attentionPath());
  }

  private static void row(Table table, String name, CacheUse use) {
    table.row(
        name,
        use.heads(),
        use.slots(),
        use.fullSlots(),
        Units.percent(use.keptFraction()),
        Units.bytes(use.bytes()));
  }
}
