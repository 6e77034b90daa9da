package dev.kvasir.examples.bench;

import dev.kvasir.Session;
import dev.kvasir.SessionGroup;
import dev.kvasir.SessionOptions;
import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.HeadUse;
import java.util.ArrayList;
import java.util.Arrays;

/**
 * What an engine is measured on: a session, or several sequences that are decoded together. Every
 * call reads the logits that it was for, as whoever samples would: a GPU may still be computing
 * when an evaluation returns.
 */
interface Sequences extends AutoCloseable {
  /** Appends tokens to every sequence. */
  void prefill(int[] tokens);

  /** Decodes one token in every sequence. */
  void step(int token);

  /** Forgets everything. */
  void clear();

  /** What the caches of all sequences hold. */
  CacheReport report();

  @Override
  void close();

  /** A session. */
  static Sequences one(Engine engine, SessionOptions options) {
    var session = engine.model().newSession(options.withCachePolicy(engine.cachePolicy()));
    return new One(session, new float[engine.model().vocabularySize()]);
  }

  /**
   * Several sequences, which all are to hold the same text.
   *
   * @param options as {@link #known} gives them
   */
  static Sequences several(Engine engine, int size, SessionOptions options) {
    var group = engine.model().newSessionGroup(size, options);
    return new Several(group, new int[size], new float[engine.model().vocabularySize()]);
  }

  /**
   * The options of a group: it does not profile, so that what the heads keep is found out in a
   * session that reads the prompt before.
   */
  static SessionOptions known(Engine engine, SessionOptions options, int[] prompt) {
    if (!(engine.cachePolicy() instanceof FastGen policy)) {
      return options.withCachePolicy(engine.cachePolicy());
    }
    if (prompt.length < policy.minimumTokens()) {
      return options.withCachePolicy(CachePolicy.full());
    }
    try (var session = engine.model().newSession(options.withCachePolicy(policy))) {
      session.evaluate(prompt);
      return session
          .profile()
          .map(options::withProfile)
          .orElseThrow(() -> new IllegalStateException("the prompt was not profiled"));
    }
  }

  /** A session. */
  record One(Session session, float[] logits) implements Sequences {
    @Override
    public void prefill(int[] tokens) {
      session.evaluate(tokens);
      session.logits(logits);
    }

    @Override
    public void step(int token) {
      session.step(token);
      session.logits(logits);
    }

    @Override
    public void clear() {
      session.clear();
    }

    @Override
    public CacheReport report() {
      return session.cacheReport();
    }

    @Override
    public void close() {
      session.close();
    }
  }

  /** A group, every sequence of which is given the same tokens. */
  record Several(SessionGroup group, int[] tokens, float[] logits) implements Sequences {
    @Override
    public void prefill(int[] prompt) {
      for (int sequence = 0; sequence < group.size(); sequence++) {
        group.prefill(sequence, prompt);
        group.logits(sequence, logits);
      }
    }

    @Override
    public void step(int token) {
      Arrays.fill(tokens, token);
      group.step(tokens);
      for (int sequence = 0; sequence < group.size(); sequence++) {
        group.logits(sequence, logits);
      }
    }

    @Override
    public void clear() {
      group.clear();
    }

    @Override
    public CacheReport report() {
      var heads = new ArrayList<HeadUse>();
      for (int sequence = 0; sequence < group.size(); sequence++) {
        heads.addAll(group.cacheReport(sequence).heads());
      }
      var first = group.cacheReport(0);
      return new CacheReport(
          first.tokens(),
          first.decided(),
          first.layers(),
          heads,
          first.residentBytes(),
          first.allocatedBytes());
    }

    @Override
    public void close() {
      group.close();
    }
  }
}
