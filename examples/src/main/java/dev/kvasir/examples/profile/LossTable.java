package dev.kvasir.examples.profile;

import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.LossProfile;
import dev.kvasir.examples.terminal.Table;
import dev.kvasir.examples.terminal.Units;
import java.util.Locale;

/** What Foresight found out, for people: every head, and what other budgets would keep. */
final class LossTable {
  private static final double[] BUDGETS = {0.5, 0.35, 0.25, 0.15, 0.1, 0.06};

  private LossTable() {}

  static String heads(CacheReport report) {
    var table = new Table("layer", "KV head", "policy", "kept", "of");
    for (var head : report.heads()) {
      table.row(head.layer(), head.kvHead(), head.policy(), head.slots(), head.fullSlots());
    }
    return table.toText();
  }

  /** Slots that other budgets would keep of the same prompt, and the loss of the others. */
  static String budgets(LossProfile profile) {
    var table = new Table("budget", "kept, with tables", "slots", "loss");
    for (double budget : BUDGETS) {
      table.row(
          Units.percent(budget),
          Units.bytes(profile.bytesAt(budget)),
          profile.slotsAt(budget).stream().mapToLong(Integer::longValue).sum(),
          String.format(Locale.ROOT, "%.3g", profile.lossAt(budget)));
    }
    return table.toText();
  }

  static String summary(LossProfile profile, CacheReport report) {
    return "%d tokens, budget %s of the full f16 cache's bytes: %s of the slots kept%n"
        .formatted(
            profile.tokens(),
            Units.percent(profile.budget()),
            Units.percent(report.keptFraction()));
  }
}
