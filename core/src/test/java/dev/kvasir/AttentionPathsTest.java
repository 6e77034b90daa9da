package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.Candidates;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.Profile;
import dev.kvasir.cache.Target;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestReporter;

/** Kvasir's kernels and ggml's attention on the CPU. */
class AttentionPathsTest {
  /**
   * A recovery is a mean over queries. What rounding makes of single ones, which quantised weights
   * magnify, is less in more of them.
   */
  @Test
  void profilesAgreeAndMoreSoOfLongerPrompts(TestReporter reporter) {
    List<ProfileDifference> found = Stream.of(600, 2_400).map(this::difference).toList();
    reporter.publishEntry("difference of recovery at 600 and 2,400 tokens", found.toString());
    for (ProfileDifference difference : found) {
      assertTrue(difference.sameChoice() >= 81, found.toString()); // of 90
      assertTrue(difference.mean() < 1e-3, found.toString());
    }
    assertTrue(found.get(1).mean() < found.get(0).mean(), found.toString());
  }

  private ProfileDifference difference(int tokens) {
    return ProfileDifference.between(
        profile(tokens, Attention.NATIVE), profile(tokens, Attention.PORTABLE));
  }

  private Profile profile(int tokens, Attention attention) {
    FastGen policy =
        CachePolicy.fastgen().withCandidates(Candidates.PAPER).withTarget(Target.recovery(0.95));
    SessionOptions options =
        TestModels.options().withContextSize(4096).withCachePolicy(policy).withAttention(attention);
    try (Session session = TestModels.adaptive().newSession(options)) {
      session.evaluate(TestModels.proseTokens(tokens));
      return session.profile().orElseThrow();
    }
  }
}
