package dev.kvasir;

import dev.kvasir.cache.CacheReport;
import dev.kvasir.internal.engine.Decoder;
import dev.kvasir.internal.engine.Sampler;
import dev.kvasir.internal.engine.Tokens;
import dev.kvasir.internal.policy.CacheStore;
import dev.kvasir.internal.policy.FakeKinds;
import dev.kvasir.internal.policy.FakeStore;
import java.nio.FloatBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import java.util.stream.IntStream;

/**
 * An engine without a model. Its memory is the list of the tokens, its logits follow from all of
 * them, and what it says is what it is told to say. It fails on misuse: positions with a gap, calls
 * after close, logits where there are none.
 */
final class FakeDecoder implements Decoder {
  static final int VOCABULARY = 100;

  /** Ends a generation. */
  static final int END = 2;

  /** Calls that cannot fail in a real decoder either. */
  private static final Set<String> SOUND =
      Set.of(
          "capacity",
          "batchSize",
          "microBatchSize",
          "promptSize",
          "store",
          "close",
          "abortWhen",
          "dropCheckpoint");

  /** Nor can these of a real store. */
  private static final Set<String> SOUND_STORE =
      Set.of(
          "forgetQueued",
          "layers",
          "shape",
          "place",
          "scoresAtHand",
          "slots",
          "position",
          "cell",
          "slotOfCell",
          "movedLayer",
          "residentBytes",
          "fullBytes");

  final List<List<Integer>> memory = new ArrayList<>(); // tokens by sequence
  final List<FakeStore> stores = new ArrayList<>();
  final List<Integer> seen = new ArrayList<>(); // by the penalties
  private final List<CacheStore> wrapped;
  private final int capacity;
  private List<Integer> script = List.of(); // what is drawn after each position
  private float[][] logits = {};
  private BooleanSupplier abort = () -> false;
  boolean cuttable = true;
  boolean closed;
  boolean exiting; // gives every decode up
  int decodes;

  private FakeDecoder(int sequences, int capacity, Faults faults) {
    this.capacity = capacity;
    for (int s = 0; s < sequences; s++) {
      memory.add(new ArrayList<>());
      stores.add(FakeStore.of(5 + s, 2, 2, 2, capacity));
    }
    wrapped = stores.stream().map(s -> faults.wrap(CacheStore.class, s, SOUND_STORE)).toList();
  }

  static FakeDecoder of(int sequences, Faults faults) {
    return new FakeDecoder(sequences, 512, faults);
  }

  /** A session over it, all of whose calls can be made to fail. */
  Session session(SessionOptions options, Faults faults) {
    return Session.over(
        faults.wrap(Decoder.class, this, SOUND), null, null, options, TOKENS, FakeKinds::new);
  }

  /** A group over it, all of whose calls can be made to fail. */
  SessionGroup group(SessionOptions options, Faults faults) {
    return SessionGroup.over(
        faults.wrap(Decoder.class, this, SOUND), memory.size(), options, TOKENS, FakeKinds::new);
  }

  /** What it says, by position: the token at p is drawn from the logits of position p - 1. */
  void say(int from, int... tokens) {
    List<Integer> said = new ArrayList<>(IntStream.range(0, from).map(i -> 99).boxed().toList());
    Arrays.stream(tokens).forEach(said::add);
    script = said;
  }

  /** A token per printable character, and some of several; 3 and 4 are control tokens. */
  static final Tokens TOKENS =
      new Tokens() {
        @Override
        public int size() {
          return VOCABULARY;
        }

        @Override
        public boolean isEndOfGeneration(int token) {
          return token == END;
        }

        @Override
        public boolean isHidden(int token) {
          return token < 5;
        }

        @Override
        public byte[] bytesOf(int token) {
          return textOf(token).getBytes(StandardCharsets.UTF_8);
        }

        @Override
        public int[] tokenizeContinuation(String text, boolean parseSpecial) {
          return text.chars().map(c -> c - 'a' + 10).toArray();
        }

        @Override
        public void checkTokens(int... tokens) {
          for (int token : tokens) {
            if (token < 0 || token >= VOCABULARY) {
              throw new IllegalArgumentException("token " + token);
            }
          }
        }
      };

  /** 10 to 35 are the letters, 40 to 65 the letters twice; the others are words. */
  static String textOf(int token) {
    if (token >= 10 && token < 36) {
      return String.valueOf((char) ('a' + token - 10));
    }
    if (token >= 40 && token < 66) {
      return String.valueOf((char) ('a' + token - 40)).repeat(2);
    }
    return token < 5 ? "<" + token + ">" : " w" + token;
  }

  private void live() {
    if (closed) {
      throw new AssertionError("used after close");
    }
  }

  @Override
  public int capacity() {
    return capacity;
  }

  @Override
  public int batchSize() {
    return 32;
  }

  @Override
  public int microBatchSize() {
    return 16;
  }

  @Override
  public int promptSize() {
    return 16;
  }

  @Override
  public Optional<CacheStore> store(int sequence) {
    return Optional.of(wrapped.get(sequence));
  }

  @Override
  public void abortWhen(BooleanSupplier condition) {
    live();
    abort = condition == null ? () -> false : condition;
  }

  private void append(int sequence, int token, int position) {
    if (position != memory.get(sequence).size()) {
      throw new AssertionError(
          "position " + position + " after " + memory.get(sequence).size() + " tokens");
    }
    memory.get(sequence).add(token);
    stores.get(sequence).evaluate(1);
  }

  /** Follows from every token of the sequence; the most probable one is what is to be said. */
  private float[] after(int sequence) {
    List<Integer> tokens = memory.get(sequence);
    float[] row = new float[VOCABULARY];
    for (int i = 0; i < row.length; i++) {
      row[i] = (tokens.hashCode() * 31 + i) % 1_000 / 1_000f;
    }
    int said = tokens.size() < script.size() ? script.get(tokens.size()) : END;
    row[said] = 10;
    return row;
  }

  @Override
  public Outcome decode(
      int sequence, int[] source, int from, int count, int position, boolean allLogits) {
    live();
    decodes++;
    logits = new float[allLogits ? count : 1][];
    for (int i = 0; i < count; i++) {
      if (exiting || abort.getAsBoolean()) {
        return Outcome.ABORTED;
      }
      append(sequence, source[from + i], position + i);
      logits[allLogits ? i : 0] = after(sequence);
    }
    return Outcome.DONE;
  }

  @Override
  public Outcome decode(int token, int position) {
    return decode(0, new int[] {token}, 0, 1, position, false);
  }

  @Override
  public Outcome decodeStep(int[] source, int[] position) {
    live();
    decodes++;
    logits = new float[source.length][];
    for (int s = 0; s < source.length; s++) {
      append(s, source[s], position[s]);
      logits[s] = after(s);
    }
    return Outcome.DONE;
  }

  @Override
  public void saveCheckpoint(int sequence, int position) {
    live();
  }

  @Override
  public void dropCheckpoint(int sequence) {
    live();
  }

  @Override
  public void requireRoomForStep(int position) {
    live();
  }

  @Override
  public boolean canTruncate(int sequence, int position) {
    return cuttable || position == 0 || position == memory.get(sequence).size();
  }

  @Override
  public boolean truncate(int sequence, int position) {
    live();
    boolean whole = canTruncate(sequence, position);
    List<Integer> tokens = memory.get(sequence);
    tokens.subList(Math.min(position, tokens.size()), tokens.size()).clear();
    stores.get(sequence).truncate(position);
    return whole;
  }

  @Override
  public void clear() {
    live();
    for (int s = 0; s < memory.size(); s++) {
      memory.get(s).clear();
      stores.get(s).truncate(0);
    }
  }

  private float[] row(int index) {
    live();
    return logits[index < 0 ? logits.length + index : index];
  }

  @Override
  public void copyLogits(int index, float[] target) {
    System.arraycopy(row(index), 0, target, 0, target.length);
  }

  @Override
  public void restoreLogits(float[] row) {
    live();
    logits[logits.length - 1] = row.clone();
  }

  @Override
  public void showLogits(int index, Consumer<FloatBuffer> to) {
    to.accept(FloatBuffer.wrap(row(index)).asReadOnlyBuffer());
  }

  @Override
  public Sampler sampler(Sampling sampling) {
    return new Sampler() {
      @Override
      public int draw() {
        int token = Logits.best(row(-1));
        seen.add(token);
        return token;
      }

      @Override
      public void accept(int token) {
        seen.add(token);
      }

      @Override
      public void takeBack(int count) {
        seen.subList(seen.size() - count, seen.size()).clear();
      }

      @Override
      public void reset() {
        seen.clear();
      }

      @Override
      public void close() {
        live();
      }
    };
  }

  @Override
  public CacheReport plainReport(int position) {
    throw new AssertionError("there is a store");
  }

  @Override
  public void close() {
    live();
    closed = true;
  }
}
