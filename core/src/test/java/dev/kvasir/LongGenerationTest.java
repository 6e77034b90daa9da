package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.Candidate;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.Profile;
import dev.kvasir.cache.Target;
import dev.kvasir.internal.policy.CacheStore;
import java.util.Arrays;
import java.util.BitSet;
import java.util.List;
import org.junit.jupiter.api.Test;

/** Every head holds what its policy says, after each of four thousand steps, and never more. */
class LongGenerationTest {
  private static final int PROMPT = 300;
  private static final int STEPS = 4_000;

  @Test
  void everyHeadFollowsItsPolicyAtEveryStep() {
    FastGen policy = CachePolicy.fastgen().withTarget(Target.budgetFraction(0.25));
    SessionOptions options =
        TestModels.options().withContextSize(PROMPT + STEPS + 8).withCachePolicy(policy);
    try (Session session = TestModels.adaptive().newSession(options)) {
      int[] prompt = TestModels.proseTokens(PROMPT);
      session.evaluate(prompt);
      Profile profile = session.profile().orElseThrow();
      CacheStore store = session.context().store(0).orElseThrow();
      Special special = new Special(session.model(), policy.sinks());
      for (int token : prompt) {
        special.append(token);
      }
      HeadCheck[][] checks = checks(profile, store, policy);
      int[] next = new int[1];
      float[] logits = new float[session.model().vocabularySize()];
      for (int step = 0; step < STEPS; step++) {
        if (step > 0) {
          special.append(next[0]);
        }
        for (int layer = 0; layer < checks.length; layer++) {
          for (HeadCheck check : checks[layer]) {
            check.verify(special, session.position());
          }
        }
        // Drawn greedily, but for every seventh token, so that the text does not run in circles.
        session.logits(logits);
        next[0] =
            step % 7 == 0
                ? TestModels.proseTokens(PROMPT + step + 1)[PROMPT + step]
                : Logits.best(logits);
        session.step(next[0]);
      }
      assertEquals(PROMPT + STEPS, session.position());
      assertTrue(
          session.cacheReport().keptFraction() < 0.4,
          "kept " + session.cacheReport().keptFraction());
    }
  }

  private static HeadCheck[][] checks(Profile profile, CacheStore store, FastGen policy) {
    HeadCheck[][] checks = new HeadCheck[store.layers()][];
    int next = 0;
    for (int layer = 0; layer < checks.length; layer++) {
      checks[layer] = new HeadCheck[store.shape(layer).kvHeads()];
      for (int head = 0; head < checks[layer].length; head++) {
        checks[layer][head] =
            new HeadCheck(
                store, layer, head, profile.chosen(profile.heads().get(next++)), policy.grace());
      }
    }
    return checks;
  }

  /**
   * Which positions hold special tokens: the sinks, control tokens, and the chat template's
   * markers.
   */
  private static final class Special {
    private final Model model;
    private final BitSet positions = new BitSet();
    private final List<int[]> markers;
    private final int sinks;
    private int[] tokens = new int[PROMPT + STEPS + 8];
    private int length;

    Special(Model model, int sinks) {
      this.model = model;
      this.sinks = sinks;
      markers =
          List.of(
                  "<|im_start|>system\n",
                  "<|im_start|>user\n",
                  "<|im_start|>assistant\n",
                  "<|im_end|>\n")
              .stream()
              .map(text -> model.tokenize(text, false, true))
              .toList();
    }

    void append(int token) {
      tokens[length++] = token;
      String text = model.tokenText(token);
      if (length <= sinks
          || text.startsWith("<|")
          || text.startsWith("<repo")
          || isControl(token, text)) {
        positions.set(length - 1);
      }
      for (int[] marker : markers) {
        int from = length - marker.length;
        if (from >= 0 && Arrays.equals(tokens, from, length, marker, 0, marker.length)) {
          positions.set(from, length);
        }
      }
    }

    /** A control token is one that only the special parser produces from its text. */
    private boolean isControl(int token, String text) {
      int[] parsed = model.tokenize(text, false, true);
      return parsed.length == 1
          && parsed[0] == token
          && model.tokenize(text, false, false).length != 1;
    }

    boolean at(int position) {
      return positions.get(position);
    }

    int count(int before) {
      return positions.get(0, before).cardinality();
    }
  }

  private static final class HeadCheck {
    private final CacheStore store;
    private final int layer;
    private final int head;
    private final Candidate candidate;
    private final int grace;
    private final BitSet held = new BitSet();
    private final BitSet now = new BitSet();
    private int lastLength;

    HeadCheck(CacheStore store, int layer, int head, Candidate candidate, int grace) {
      this.store = store;
      this.layer = layer;
      this.head = head;
      this.candidate = candidate;
      this.grace = grace;
    }

    void verify(Special special, int length) {
      int slots = store.slots(layer, head);
      if (candidate.full()) {
        assertEquals(length, slots, this::toString);
        return;
      }
      int window = Math.max(candidate.local().in(PROMPT), grace);
      now.clear();
      int frequent = 0;
      for (int slot = 0; slot < slots; slot++) {
        int position = store.position(layer, head, slot);
        now.set(position);
        if (position < length - window && !special.at(position)) {
          frequent++;
        }
      }
      assertEquals(slots, now.cardinality(), "a token is held twice");
      int from = Math.max(0, length - window);
      assertEquals(length, now.nextClearBit(from), "the window is whole");
      int pinned = special.count(from);
      assertEquals(slots, frequent + pinned + length - from, this::toString);
      int quota = (int) (candidate.frequent() * length + 1e-9);
      assertTrue(frequent <= quota, () -> this + " holds more than " + quota + " frequent tokens");
      // What was dropped does not come back.
      held.set(lastLength, length);
      now.andNot(held);
      assertTrue(now.isEmpty(), this::toString);
      held.clear();
      for (int slot = 0; slot < slots; slot++) {
        held.set(store.position(layer, head, slot));
      }
      lastLength = length;
    }

    @Override
    public String toString() {
      return "layer " + layer + " head " + head + " " + candidate;
    }
  }
}
