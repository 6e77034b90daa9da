package dev.kvasir.examples.options;

import dev.kvasir.SessionOptions;
import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.Foresight;
import dev.kvasir.cache.Profile;
import dev.kvasir.cache.Target;
import java.nio.file.Path;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;

/** What the cache of a session keeps. */
public final class CacheArguments {
  /** The policies that can be named. */
  public enum Policy {
    /** There is no adaptive cache: unmodified llama.cpp. */
    NONE,
    /** Everything is kept. */
    FULL,
    /** Every head keeps what its profile shows that it needs. */
    FASTGEN,
    /** Every slot is judged by what queries that come later would take from it. */
    FORESIGHT
  }

  @Spec(Spec.Target.MIXEE)
  private CommandSpec command;

  @Option(
      names = "--kv-policy",
      paramLabel = "none|full|fastgen|foresight",
      description =
          "Keep everything, or per KV head what a profile of the prompt asks for, or what the prompt's queries would take if they came after"
              + " it; none: unmodified llama.cpp, for models that the adaptive cache has no path for. Default: fastgen; of a chat foresight, or fastgen where only that has what is asked for.")
  private @Nullable Policy policy;

  @Option(
      names = "--kv-recovery",
      paramLabel = "T",
      converter = RecoveryConverter.class,
      description =
          "Every head keeps as little as recovers this fraction of its attention; 1 keeps everything. Default: 0.95.")
  private @Nullable Target recovery;

  @Option(
      names = "--kv-budget",
      paramLabel = "50%|512M",
      converter = BudgetConverter.class,
      description =
          "The heads share this part of the full cache, or so many bytes, in place of --kv-recovery. Foresight: a part of the full f16 cache's"
              + " bytes, whatever the types are. Default there: 35%%.")
  private @Nullable Target budget;

  @Option(
      names = "--kv-limit",
      paramLabel = "512M",
      converter = BytesConverter.class,
      description =
          "Most memory that keys and values may occupy; what would exceed it fails. Default: no limit.")
  private @Nullable Long limit;

  @Mixin private FastGenArguments fastgen;
  @Mixin private ForesightArguments foresight;

  @Option(
      names = "--kv-profile",
      paramLabel = "FILE",
      description =
          "Take the heads' policies from a saved profile; --kv-recovery and --kv-budget choose from it anew.")
  private @Nullable Path profile;

  /** Called by picocli, which sets the command and the mixins. */
  @SuppressWarnings("NullAway.Init")
  public CacheArguments() {}

  /**
   * Session options with the policy and the limit, and with the profile where one is to be used
   * again.
   *
   * @throws ParameterException if the options contradict each other
   * @throws dev.kvasir.ProfileException if the profile's file is no profile
   */
  public SessionOptions over(SessionOptions defaults) {
    var options =
        Given.over(command, defaults, limit, SessionOptions::withCacheMemoryLimit, "--kv-limit");
    if (recovery != null && budget != null) {
      throw contradiction(
          "--kv-recovery and --kv-budget exclude each other: both say how much is kept");
    }
    if (policy == Policy.FORESIGHT) {
      return options.withCachePolicy(foresight());
    }
    if (foresight.given()) {
      throw contradiction("--kv-statistic and --kv-head-weights need --kv-policy foresight");
    }
    var target = recovery != null ? recovery : budget;
    if (policy == Policy.NONE) {
      if (target != null || profile != null || fastgen.given() || limit != null) {
        throw contradiction(
            "--kv-policy none leaves the cache to llama.cpp: the other --kv options need --kv-policy full or fastgen");
      }
      return options.withCachePolicy(CachePolicy.full());
    }
    if (policy == Policy.FULL) {
      if (target != null || profile != null || fastgen.given()) {
        throw contradiction(
            "--kv-policy full keeps everything: the other --kv options, but for --kv-limit, need --kv-policy fastgen");
      }
      return options.withCachePolicy(CachePolicy.full());
    }
    if (profile != null) {
      if (fastgen.given()) {
        throw contradiction(
            "--kv-profile brings its own candidates and figures: only --kv-recovery or --kv-budget can go with it");
      }
      var loaded = Profile.load(profile);
      var chosen = target == null ? loaded : loaded.withTarget(target);
      return options.withCachePolicy(chosen.policy()).withProfile(chosen);
    }
    var chosen = fastgen.policy();
    return options.withCachePolicy(target == null ? chosen : chosen.withTarget(target));
  }

  /**
   * Whether nothing was said of how the cache is held, but perhaps how much of it, or what
   * Foresight is to do.
   */
  public boolean leavesPolicyOpen() {
    return policy == null
        && recovery == null
        && profile == null
        && !fastgen.given()
        && (budget == null || budget instanceof Target.BudgetFraction);
  }

  /** Whether something was said that only Foresight does. */
  public boolean asksOfForesight() {
    return foresight.given();
  }

  /** As {@link #over} with Foresight, where the policy was left open. */
  public SessionOptions foresightOver(SessionOptions defaults) {
    return Given.over(command, defaults, limit, SessionOptions::withCacheMemoryLimit, "--kv-limit")
        .withCachePolicy(foresight());
  }

  /** As {@link #over} with FastGen, where the policy was left open. */
  public SessionOptions fastgenOver(SessionOptions defaults) {
    var chosen = fastgen.policy();
    return Given.over(command, defaults, limit, SessionOptions::withCacheMemoryLimit, "--kv-limit")
        .withCachePolicy(budget == null ? chosen : chosen.withTarget(budget));
  }

  private Foresight foresight() {
    if (recovery != null || profile != null || fastgen.given()) {
      throw contradiction(
          "--kv-policy foresight takes --kv-budget, --kv-statistic, --kv-head-weights and --kv-limit: the other --kv options need --kv-policy fastgen");
    }
    return switch (budget) {
      case null -> foresight.policy();
      case Target.BudgetFraction(double fraction) -> foresight.policy().withBudget(fraction);
      default ->
          throw contradiction(
              "--kv-policy foresight takes --kv-budget as a part of the full f16 cache (35%)");
    };
  }

  /** Whether the KV cache is to be Kvasir's. */
  public boolean adaptive() {
    return policy != Policy.NONE;
  }

  private ParameterException contradiction(String message) {
    return new ParameterException(command.commandLine(), message);
  }
}
