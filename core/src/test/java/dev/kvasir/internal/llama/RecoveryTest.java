package dev.kvasir.internal.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.ModelOptions;
import dev.kvasir.Session;
import dev.kvasir.TestModels;
import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.Candidate;
import dev.kvasir.cache.Candidates;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.HeadProfile;
import dev.kvasir.cache.Pooling;
import dev.kvasir.cache.Profile;
import dev.kvasir.cache.Score;
import dev.kvasir.cache.Weight;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.function.ToDoubleFunction;
import java.util.regex.Pattern;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/**
 * Recovery and choice of every head, against the same figures computed from llama.cpp's real
 * attention matrices: the plain attention path of an unmodified context, read node by node.
 *
 * <p>Which tokens are frequent is decided by comparing scores, and near a tie the rounding that
 * quantised weights magnify from layer to layer would decide it differently in two engines. So
 * every layer of the reference is given the attention output of our engine as its input to what
 * follows, after its own was compared with it: both then see the same queries and keys in every
 * layer.
 */
class RecoveryTest {
  private static final double TOLERANCE = 1e-3;

  /** Relative difference of two scores that rounding may turn around. */
  private static final double TIE = 1e-3;

  private static final int LENGTH = 400;
  private static final int LAYERS = 30;
  private static final int KV_HEADS = 3;
  private static final int GROUP = 3;
  private static final int HEAD_DIMENSION = 64;
  private static final Pattern PUNCTUATION = Pattern.compile("[\\p{P}\\p{S}]+");

  private static int[] prompt;
  private static boolean[] special;
  private static boolean[] punctuation;
  // [layer][KV head][query head of the group][query][key]
  private static final float[][][][][] ATTENTION = new float[LAYERS][KV_HEADS][GROUP][LENGTH][];
  private static final float[][][] NORMS = new float[LAYERS][KV_HEADS][LENGTH];
  // [layer][token][query head, element]
  private static final float[][][] OUTPUTS =
      new float[LAYERS][LENGTH][HEAD_DIMENSION * KV_HEADS * GROUP];

  @BeforeAll
  static void readMatrices() {
    try (NativeModel model = NativeModel.load(TestModels.path(), ModelOptions.defaults())) {
      preparePrompt(model);
      try (ProbedContext context =
          new ProbedContext(model, 512, TestModels.threads(), true, new Outputs())) {
        context.decode(prompt, 0);
      }
    }
    try (NativeModel model =
        NativeModel.load(TestModels.path(), ModelOptions.defaults().withAdaptiveCache(false))) {
      try (ProbedContext context =
          new ProbedContext(model, 512, TestModels.threads(), false, new Matrices())) {
        context.decode(prompt, 0);
      }
    }
  }

  @AfterAll
  static void forget() {
    for (int layer = 0; layer < LAYERS; layer++) {
      Arrays.fill(ATTENTION[layer], null);
      OUTPUTS[layer] = null;
    }
  }

  /** A chat prompt, so that all kinds of tokens occur. */
  private static void preparePrompt(NativeModel model) {
    String text = TestModels.prose();
    String chat =
        "<|im_start|>system\nYou tell stories.<|im_end|>\n<|im_start|>user\n"
            + text.substring(0, 5_000);
    int[] all = model.tokenize(chat, false, true);
    int[] end = model.tokenize("<|im_end|>\n<|im_start|>assistant\n", false, true);
    prompt = Arrays.copyOf(all, LENGTH);
    System.arraycopy(end, 0, prompt, LENGTH - end.length, end.length);
    special = new boolean[LENGTH];
    punctuation = new boolean[LENGTH];
    for (int i = 0; i < LENGTH; i++) {
      String token = model.vocabulary().textOf(prompt[i]);
      special[i] |= i < 4 || token.equals("<|im_start|>") || token.equals("<|im_end|>");
      punctuation[i] = PUNCTUATION.matcher(token.strip()).matches();
    }
    for (String marker :
        List.of(
            "<|im_start|>system\n",
            "<|im_start|>user\n",
            "<|im_start|>assistant\n",
            "<|im_end|>\n")) {
      int[] tokens = model.tokenize(marker, false, true);
      for (int i = 0; i + tokens.length <= LENGTH; i++) {
        if (Arrays.equals(prompt, i, i + tokens.length, tokens, 0, tokens.length)) {
          Arrays.fill(special, i, i + tokens.length, true);
        }
      }
    }
  }

  private static int layerOf(ProbedContext.Tensor tensor) {
    return Integer.parseInt(tensor.name().substring(tensor.name().indexOf('-') + 1));
  }

  /** Takes down what attention puts out in our engine. */
  private static final class Outputs implements ProbedContext.Probe {
    @Override
    public boolean wants(ProbedContext.Tensor tensor) {
      return tensor.name().startsWith("kqv_out-");
    }

    @Override
    public void computed(ProbedContext.Tensor tensor) {
      for (int token = 0; token < LENGTH; token++) {
        tensor.row(token, 0, OUTPUTS[layerOf(tensor)][token]);
      }
    }
  }

  private static final class Matrices implements ProbedContext.Probe {
    @Override
    public boolean wants(ProbedContext.Tensor tensor) {
      return tensor.name().startsWith("kq_soft_max-")
          || tensor.name().startsWith("kqv_out-")
          || isValues(tensor);
    }

    private static boolean isValues(ProbedContext.Tensor tensor) {
      return tensor.name().startsWith("Vcur-") && tensor.extent(0) == HEAD_DIMENSION;
    }

    @Override
    public void computed(ProbedContext.Tensor tensor) {
      int layer = layerOf(tensor);
      if (tensor.name().startsWith("kqv_out-")) {
        replaceOutputs(tensor, OUTPUTS[layer]);
        return;
      }
      assertEquals(LENGTH, tensor.extent(isValues(tensor) ? 2 : 1), "one batch");
      if (isValues(tensor)) {
        float[] row = new float[HEAD_DIMENSION];
        for (int head = 0; head < KV_HEADS; head++) {
          for (int token = 0; token < LENGTH; token++) {
            tensor.row(head, token, row);
            double sum = 0;
            for (float x : row) {
              sum += (double) x * x;
            }
            NORMS[layer][head][token] = (float) Math.sqrt(sum);
          }
        }
        return;
      }
      for (int head = 0; head < KV_HEADS * GROUP; head++) {
        for (int query = 0; query < LENGTH; query++) {
          float[] row = new float[query + 1];
          tensor.row(query, head, row);
          ATTENTION[layer][head / GROUP][head % GROUP][query] = row;
        }
      }
    }
  }

  private static void replaceOutputs(ProbedContext.Tensor tensor, float[][] ours) {
    float[] theirs = new float[ours[0].length];
    double difference = 0;
    double size = 0;
    for (int token = 0; token < LENGTH; token++) {
      tensor.row(token, 0, theirs);
      for (int i = 0; i < theirs.length; i++) {
        difference += Math.abs(theirs[i] - ours[token][i]);
        size += Math.abs(theirs[i]);
      }
      tensor.setRow(token, 0, ours[token]);
    }
    assertTrue(difference < 2e-3 * size, tensor.name() + " differs by " + difference / size);
  }

  @Test
  void thePapersCandidates() {
    compare(FastGen.asPublished());
  }

  @Test
  void theLattice() {
    compare(FastGen.asPublished().withCandidates(Candidates.LATTICE).withScore(Score.MEAN));
  }

  @Test
  void theDefaultsWeightedByTheValuesNorms() {
    compare(CachePolicy.fastgen());
  }

  @Test
  void pooledByTheMinimum() {
    compare(FastGen.asPublished().withPooling(Pooling.MIN));
  }

  private static void compare(FastGen policy) {
    Profile profile;
    try (Session session =
        TestModels.adaptive()
            .newSession(TestModels.options().withContextSize(512).withCachePolicy(policy))) {
      session.evaluate(prompt);
      profile = session.profile().orElseThrow();
    }
    double target = 0.95;
    List<Candidate> candidates = profile.candidates();
    assertEquals(policy.candidates() == Candidates.PAPER ? 5 : 14 * 9 + 1, candidates.size());
    assertEquals(LAYERS * KV_HEADS, profile.heads().size());
    double worst = 0;
    int ties = 0;
    List<String> wrong = new ArrayList<>();
    for (HeadProfile head : profile.heads()) {
      Reference reference = new Reference(policy, head.layer(), head.kvHead());
      double[] expected = new double[candidates.size()];
      for (int c = 0; c < expected.length; c++) {
        expected[c] = reference.recovery(candidates.get(c), false);
        double difference = Math.abs(expected[c] - head.recovery(c));
        if (difference > TOLERANCE) {
          // Two tokens of equal score stand at the limit, and the engine took the other one.
          double other = reference.recovery(candidates.get(c), true);
          difference = Math.abs(other - head.recovery(c));
          ties++;
        }
        worst = Math.max(worst, difference);
      }
      boolean borderline =
          Arrays.stream(expected).anyMatch(recovery -> Math.abs(recovery - target) <= TOLERANCE);
      int cheapest = cheapest(policy, candidates, expected, target);
      int cost = cost(policy, candidates.get(cheapest));
      assertEquals(cost(policy, candidates.get(head.chosen())), head.kept(), "cost of " + head);
      // Candidates of one cost are equally cheap.
      if (!borderline && head.kept() != cost) {
        wrong.add(head + " instead of " + candidates.get(cheapest));
      }
    }
    assertTrue(worst <= TOLERANCE, "largest difference " + worst);
    assertTrue(ties <= profile.heads().size() * candidates.size() / 1_000, ties + " ties");
    assertEquals(List.of(), wrong);
  }

  private static int cheapest(
      FastGen policy, List<Candidate> candidates, double[] recovery, double target) {
    ToDoubleFunction<Integer> cost = c -> cost(policy, candidates.get(c));
    return IntStream.range(0, recovery.length)
        .boxed()
        .filter(c -> recovery[c] >= target)
        .min(Comparator.comparingDouble(cost))
        .orElseThrow();
  }

  private static boolean pinned(Candidate candidate, int token) {
    return candidate.special() && special[token] || candidate.punctuation() && punctuation[token];
  }

  private static int window(Candidate candidate) {
    return candidate.local().tokens() > 0
        ? candidate.local().tokens()
        : (int) (candidate.local().ofPrompt() * LENGTH + 1e-9);
  }

  private static int cost(FastGen policy, Candidate candidate) {
    if (candidate.full()) {
      return LENGTH;
    }
    int always = 0;
    for (int token = 0; token < LENGTH; token++) {
      always +=
          pinned(candidate, token) || token >= LENGTH - Math.max(window(candidate), policy.grace())
              ? 1
              : 0;
    }
    return Math.min(LENGTH, always + (int) (candidate.frequent() * LENGTH + 1e-9));
  }

  /** One head's matrices, weighted as the policy wants, and the scores of its columns. */
  private static final class Reference {
    private final FastGen policy;
    // one matrix per query head, or their sum where they are pooled by the mean
    private final List<float[][]> matrices = new ArrayList<>();
    private final double[] score = new double[LENGTH];

    Reference(FastGen policy, int layer, int head) {
      this.policy = policy;
      float[][] sum = null;
      for (int g = 0; g < GROUP; g++) {
        float[][] weighted = weighted(ATTENTION[layer][head][g], NORMS[layer][head]);
        for (float[] row : weighted) {
          for (int key = 0; key < row.length; key++) {
            score[key] += row[key];
          }
        }
        if (policy.pooling() == Pooling.MIN) {
          matrices.add(weighted);
        } else {
          sum = sum == null ? weighted : add(sum, weighted);
        }
      }
      if (sum != null) {
        matrices.add(sum);
      }
      for (int key = 0; key < LENGTH && policy.score() == Score.MEAN; key++) {
        score[key] /= LENGTH - key;
      }
    }

    private float[][] weighted(float[][] matrix, float[] norms) {
      float[][] result = new float[LENGTH][];
      for (int query = 0; query < LENGTH; query++) {
        result[query] = matrix[query].clone();
        for (int key = 0; key <= query && policy.weight() == Weight.VALUE; key++) {
          result[query][key] *= norms[key];
        }
      }
      return result;
    }

    private static float[][] add(float[][] sum, float[][] matrix) {
      for (int query = 0; query < LENGTH; query++) {
        for (int key = 0; key <= query; key++) {
          sum[query][key] += matrix[query][key];
        }
      }
      return sum;
    }

    double recovery(Candidate candidate, boolean swapTie) {
      if (candidate.full()) {
        return 1;
      }
      boolean[] kept = keptByContent(candidate, swapTie);
      int window = Math.max(1, window(candidate));
      double least = 1;
      for (float[][] matrix : matrices) {
        double recovered = 0;
        double total = 0;
        for (int query = 0; query < LENGTH; query++) {
          float[] row = matrix[query];
          for (int key = 0; key <= query; key++) {
            total += row[key];
            if (kept[key] || query - key < window) {
              recovered += row[key];
            }
          }
        }
        least = Math.min(least, recovered / total);
      }
      return least;
    }

    private boolean[] keptByContent(Candidate candidate, boolean swapTie) {
      boolean[] kept = new boolean[LENGTH];
      for (int key = 0; key < LENGTH; key++) {
        kept[key] = pinned(candidate, key);
      }
      List<Integer> ranked =
          IntStream.range(0, LENGTH - window(candidate))
              .filter(key -> !kept[key])
              .boxed()
              .sorted(Comparator.comparingDouble(key -> -score[key]))
              .toList();
      int limit = Math.min(ranked.size(), (int) (candidate.frequent() * LENGTH + 1e-9));
      for (int rank = 0; rank < limit; rank++) {
        kept[ranked.get(rank)] = true;
      }
      if (swapTie && limit > 0 && limit < ranked.size()) {
        int last = ranked.get(limit - 1);
        int next = ranked.get(limit);
        if (score[last] - score[next] < TIE * score[next]) {
          kept[last] = false;
          kept[next] = true;
        }
      }
      return kept;
    }
  }
}
