package dev.kvasir.examples.bench;

import dev.kvasir.Model;
import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.Foresight;
import dev.kvasir.cache.Target;
import dev.kvasir.examples.terminal.Units;
import java.math.BigDecimal;

/**
 * What a row of the benchmark runs on.
 *
 * @param name {@code llama.cpp} or {@code kvasir}
 * @param policy what the cache keeps, in words
 * @param model loaded with or without the adaptive cache
 * @param cachePolicy what the cache keeps
 */
record Engine(String name, String policy, Model model, CachePolicy cachePolicy) {

  static Engine llamaCpp(Model model) {
    return new Engine("llama.cpp", "full", model, CachePolicy.full());
  }

  static Engine full(Model model) {
    return new Engine("kvasir", "full", model, CachePolicy.full());
  }

  static Engine fastgen(Model model, FastGen policy) {
    var target =
        switch (policy.target()) {
          case Target.Recovery(double recovery) -> "T=" + recovery;
          case Target.BudgetFraction(double fraction) -> percent(fraction);
          case Target.BudgetBytes(long bytes) -> Units.bytes(bytes);
        };
    return new Engine("kvasir", "fastgen " + target, model, policy);
  }

  static Engine foresight(Model model, Foresight policy) {
    var name = "foresight " + policy.statistic() + " " + percent(policy.budget());
    return new Engine("kvasir", name, model, policy);
  }

  private static String percent(double fraction) {
    return BigDecimal.valueOf(fraction).movePointRight(2).stripTrailingZeros().toPlainString()
        + "%";
  }
}
