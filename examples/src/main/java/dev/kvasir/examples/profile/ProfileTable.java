package dev.kvasir.examples.profile;

import dev.kvasir.cache.Profile;
import dev.kvasir.cache.Target;
import dev.kvasir.examples.terminal.Table;
import dev.kvasir.examples.terminal.Units;

/** A profile for people: every head, and what other targets would keep. */
final class ProfileTable {
  private static final double[] RECOVERIES = {0.8, 0.9, 0.95, 0.98, 0.99, 1};

  private ProfileTable() {}

  static String heads(Profile profile) {
    var kinds = profile.heads().getFirst().paperRecovery().sequencedKeySet();
    var header =
        new java.util.ArrayList<>(
            java.util.List.of("layer", "KV head", "policy", "kept", "of", "recovery"));
    kinds.forEach(kind -> header.add(kind.equals("full") ? kind : "+" + kind));
    var table = new Table(header.toArray(String[]::new));
    for (var head : profile.heads()) {
      var row = new java.util.ArrayList<Object>();
      row.add(head.layer());
      row.add(head.kvHead());
      row.add(profile.chosen(head).name());
      row.add(head.kept());
      row.add(head.slots());
      row.add(Units.decimal(head.recovery(), 4));
      kinds.forEach(kind -> row.add(Units.decimal(head.paperRecovery().get(kind), 4)));
      table.row(row.toArray());
    }
    return table.toText();
  }

  /** Bytes that other recoveries would keep of the same prompt. */
  static String targets(Profile profile) {
    var table = new Table("T", "K+V", "kept");
    for (double recovery : RECOVERIES) {
      long bytes = profile.bytesAt(recovery);
      table.row(
          Units.decimal(recovery, 2),
          Units.bytes(bytes),
          Units.percent((double) bytes / profile.fullBytes()));
    }
    return table.toText();
  }

  static String summary(Profile profile) {
    return "%d tokens, %s: %s of %s kept (%s), mean recovery %s%n"
        .formatted(
            profile.tokens(),
            switch (profile.target()) {
              case Target.Recovery(double recovery) -> "recovery " + recovery;
              case Target.BudgetFraction(double fraction) -> "budget " + Units.percent(fraction);
              case Target.BudgetBytes(long bytes) -> "budget " + Units.bytes(bytes);
            },
            Units.bytes(profile.bytes()),
            Units.bytes(profile.fullBytes()),
            Units.percent((double) profile.bytes() / profile.fullBytes()),
            Units.decimal(profile.meanRecovery(), 4));
  }
}
