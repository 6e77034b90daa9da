package dev.kvasir.examples.chat;

import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.CacheUse;
import dev.kvasir.examples.terminal.Table;
import dev.kvasir.examples.terminal.Units;
import java.util.Comparator;
import java.util.Map;

/** What a cache holds, by policy and by layer. */
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
        .reduce(CacheTable::sum)
        .ifPresent(rest -> row(policies, byPolicy.size() - named + " other policies", rest));
    row(policies, "all", report.total());

    var layers = new Table("layer", "heads", "kept slots", "of", "kept", "K+V");
    report.byLayer().forEach((layer, use) -> row(layers, layer.toString(), use));

    return policies.toText()
        + "\n"
        + layers.toText()
        + "\n%d tokens; %s in memory; llama.cpp would allocate %s for this context\n"
            .formatted(
                report.tokens(),
                Units.bytes(report.residentBytes()),
                Units.bytes(report.allocatedBytes()));
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

  private static CacheUse sum(CacheUse a, CacheUse b) {
    return new CacheUse(
        a.heads() + b.heads(),
        a.slots() + b.slots(),
        a.fullSlots() + b.fullSlots(),
        a.bytes() + b.bytes(),
        a.fullBytes() + b.fullBytes());
  }
}
