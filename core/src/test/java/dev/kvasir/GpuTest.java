package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeFalse;

import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.HeadProfile;
import dev.kvasir.cache.LayerPlace;
import dev.kvasir.cache.Profile;
import dev.kvasir.cache.Score;
import dev.kvasir.cache.Target;
import dev.kvasir.cache.Weight;
import dev.kvasir.internal.policy.CacheStore;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Sessions on the first GPU that ggml shows, against the CPU; skipped where there is none. With a
 * Vulkan driver that renders on the CPU: {@code -Dkvasir.vulkan} and {@code
 * GGML_VK_VISIBLE_DEVICES=0}.
 */
class GpuTest {
  private static final int LAYERS = 4;
  private static final int PROMPT = 400;
  private static final int STEPS = 24;

  @TempDir private static Path directory;

  private static List<String> gpus;
  private static Path file;
  private static int[] text;

  @BeforeAll
  static void findGpu() {
    gpus =
        Devices.list().stream()
            .filter(device -> device.type() == DeviceType.GPU)
            .map(Device::name)
            .toList();
    assumeFalse(gpus.isEmpty(), "there is no GPU here");
    file = SyntheticModels.llama(directory.resolve("llama.gguf"), LAYERS);
    text = new Random(11).ints(PROMPT + STEPS, 3, 300).toArray();
  }

  @AfterAll
  static void forget() {
    text = null;
  }

  private static Model load(ModelOptions options) {
    return Model.load(file, options);
  }

  private static ModelOptions on(String device) {
    return ModelOptions.defaults().withDevice(device);
  }

  private static SessionOptions options() {
    return TestModels.options().withContextSize(512);
  }

  private static CachePolicy half() {
    return CachePolicy.fastgen().withTarget(Target.budgetFraction(0.5));
  }

  /** The logits after every step, with what the cache held at the end. */
  private record Run(float[][] logits, CacheReport report, Profile profile) {}

  private static Run run(ModelOptions model, SessionOptions options) {
    try (Model loaded = load(model);
        Session session = loaded.newSession(options)) {
      float[][] logits = new float[STEPS + 1][];
      session.evaluate(Arrays.copyOf(text, PROMPT));
      logits[0] = session.logits();
      for (int step = 0; step < STEPS; step++) {
        session.step(text[PROMPT + step]);
        logits[step + 1] = session.logits();
      }
      return new Run(logits, session.cacheReport(), session.profile().orElse(null));
    }
  }

  private static double divergence(Run expected, Run actual, int steps) {
    double sum = 0;
    for (int i = 0; i <= steps; i++) {
      sum += Logits.divergence(expected.logits[i], actual.logits[i]);
    }
    return sum / (steps + 1);
  }

  /**
   * Over the prompt and the first steps on the compressed cache. Each step drops the lowest of some
   * hundred scores per head, and with random weights all are nearly the same: after a few steps
   * devices that round scores differently hold other tokens, and random weights make much of that.
   */
  private static double earlyDivergence(Run expected, Run actual) {
    return divergence(expected, actual, 2);
  }

  @Test
  void keepingEverythingIsAsUnmodifiedLlamaCpp() {
    SessionOptions full = options().withCachePolicy(CachePolicy.full());
    Run stock = run(on(gpus.getFirst()).withAdaptiveCache(false), full);
    Run ours = run(on(gpus.getFirst()), full);
    Run cpu = run(on("CPU").withAdaptiveCache(false), full);
    double noise = divergence(cpu, stock, STEPS);
    double divergence = divergence(stock, ours, STEPS);
    assertTrue(divergence <= 2 * noise + 1e-5, divergence + " against " + noise);
    assertEquals(1, ours.report.keptFraction());
  }

  @Test
  void theSameProfileIsUsedOnTheCpu() {
    Run gpu = run(on(gpus.getFirst()), options().withCachePolicy(half()));
    Run cpu = run(on("CPU"), options().withCachePolicy(half()));
    double sum = 0;
    int figures = 0;
    for (int head = 0; head < cpu.profile.heads().size(); head++) {
      HeadProfile expected = cpu.profile.heads().get(head);
      HeadProfile actual = gpu.profile.heads().get(head);
      for (int candidate = 0; candidate < cpu.profile.candidates().size(); candidate++) {
        double difference = Math.abs(expected.recovery(candidate) - actual.recovery(candidate));
        assertTrue(difference < 1e-2, expected.recovery(candidate) + " is off by " + difference);
        sum += difference;
        figures++;
      }
    }
    assertTrue(sum / figures < 1e-3, sum / figures + " on average");
    Run reused = run(on("CPU"), options().withProfile(gpu.profile));
    assertTrue(reused.report.keptFraction() < 0.6);
    Run there = run(on(gpus.getFirst()), options().withProfile(gpu.profile));
    double divergence = earlyDivergence(reused, there);
    assertTrue(divergence < 1e-3, "" + divergence);
    assertEquals(reused.report.keptSlots(), there.report.keptSlots());
  }

  /**
   * Slot for slot: with the choice given, a GPU keeps the tokens that the CPU keeps. What it may
   * keep in place of one of them has, but for rounding, the same score.
   */
  @Test
  void theSameTokensAreKeptAsOnTheCpu() {
    FastGen byScore =
        CachePolicy.fastgen()
            .withTarget(Target.budgetFraction(0.5))
            .withScore(Score.SUM)
            .withWeight(Weight.NONE);
    Run run = run(on("CPU"), options().withCachePolicy(byScore));
    Map<String, SessionOptions> policies =
        Map.of(
            "FastGen",
            options().withProfile(run.profile),
            "a window",
            options().withCachePolicy(CachePolicy.uniform(0, 0.2)));
    for (var policy : policies.entrySet()) {
      SessionOptions options = policy.getValue();
      try (Model here = load(on("CPU"));
          Model there = load(on(gpus.getFirst()));
          Session cpu = here.newSession(options);
          Session gpu = there.newSession(options)) {
        int[] prompt = Arrays.copyOf(text, PROMPT);
        cpu.evaluate(prompt);
        gpu.evaluate(prompt);
        compareSlots(cpu, gpu, policy.getKey(), 1.02f);
        for (int step = 0; step < STEPS; step++) {
          cpu.step(text[PROMPT + step]);
          gpu.step(text[PROMPT + step]);
        }
        // Of two that were equal when one had to go, the other has gained since.
        compareSlots(cpu, gpu, policy.getKey() + " after steps", 1.15f);
      }
    }
  }

  private static void compareSlots(Session cpu, Session gpu, String what, float apart) {
    CacheStore expected = cpu.context().store(0).orElseThrow();
    CacheStore actual = gpu.context().store(0).orElseThrow();
    int kept = 0;
    int others = 0;
    for (int layer = 0; layer < expected.layers(); layer++) {
      for (int head = 0; head < expected.shape(layer).kvHeads(); head++) {
        Map<Integer, Float> ofCpu = scores(expected, layer, head);
        Map<Integer, Float> ofGpu = scores(actual, layer, head);
        assertEquals(ofCpu.size(), ofGpu.size(), what);
        kept += ofCpu.size();
        float least = Float.MAX_VALUE;
        float most = 0;
        for (int position : ofCpu.keySet()) {
          if (!ofGpu.containsKey(position)) {
            least = Math.min(least, ofCpu.get(position));
            most = Math.max(most, ofCpu.get(position));
            others++;
          }
        }
        for (int position : ofGpu.keySet()) {
          if (!ofCpu.containsKey(position)) {
            least = Math.min(least, ofGpu.get(position));
            most = Math.max(most, ofGpu.get(position));
          }
        }
        assertTrue(
            most <= apart * least + 1e-4 || most == 0,
            "%s: layer %d head %d keeps other tokens, of scores %f to %f"
                .formatted(what, layer, head, least, most));
      }
    }
    assertTrue(others <= kept / 50, "%s: %d of %d tokens are others".formatted(what, others, kept));
  }

  /** By position. */
  private static Map<Integer, Float> scores(CacheStore store, int layer, int head) {
    int slots = store.slots(layer, head);
    int[] positions = new int[slots];
    float[] scores = new float[slots];
    store.readPositions(layer, head, positions, slots);
    store.readScores(layer, head, 0, slots, scores);
    Map<Integer, Float> map = new TreeMap<>();
    for (int slot = 0; slot < slots; slot++) {
      map.put(positions[slot], scores[slot]);
    }
    assertEquals(slots, map.size(), "a position that is held twice");
    return map;
  }

  @Test
  void everyLayerIsWhereItWasPut() {
    SessionOptions policy = options().withCachePolicy(half());
    Run whole = run(on(gpus.getFirst()), policy);
    for (LayerPlace place : whole.report.layers()) {
      assertEquals(gpus.getFirst(), place.device());
    }
    // the output counts as one
    Run mixed = run(on(gpus.getFirst()).withGpuLayers(2), options().withProfile(whole.profile));
    assertEquals(
        List.of("CPU", "CPU", "CPU", gpus.getFirst()),
        mixed.report.layers().stream().map(LayerPlace::device).toList());
    assertTrue(
        mixed.report.layers().getFirst().attentionPath().startsWith("native kernels"),
        mixed.report.layers()::toString);
    assertEquals(List.of("CPU", gpus.getFirst()), List.copyOf(mixed.report.byDevice().keySet()));
    assertEquals(
        mixed.report.keptBytes(),
        mixed.report.byDevice().values().stream().mapToLong(use -> use.bytes()).sum());
    double divergence = earlyDivergence(whole, mixed);
    assertTrue(divergence < 1e-3, "" + divergence);
    Run none = run(on(gpus.getFirst()).withGpuLayers(0), policy);
    assertEquals(List.of("CPU"), List.copyOf(none.report.byDevice().keySet()));
  }

  @Test
  void unmodifiedLlamaCppPutsItsLayersThere() {
    SessionOptions full = options().withCachePolicy(CachePolicy.full());
    Run mixed = run(on(gpus.getFirst()).withGpuLayers(3).withAdaptiveCache(false), full);
    assertEquals(
        List.of("CPU", "CPU", gpus.getFirst(), gpus.getFirst()),
        mixed.report.layers().stream().map(LayerPlace::device).toList());
  }

  @Test
  void groupsAreDecodedOnTheGpu() {
    float[] logits = new float[3 + 256 + 64];
    try (Model model = load(on(gpus.getFirst()));
        SessionGroup group =
            model.newSessionGroup(
                2,
                options()
                    .withSampling(Sampling.defaults())
                    .withCachePolicy(CachePolicy.uniform(0.2, 0.2)));
        Session alone =
            model.newSession(options().withCachePolicy(CachePolicy.uniform(0.2, 0.2)))) {
      int[] prompt = Arrays.copyOf(text, PROMPT);
      alone.evaluate(prompt);
      group.prefill(0, Arrays.copyOf(text, 10));
      group.prefill(1, prompt);
      for (int step = 0; step < STEPS; step++) {
        alone.step(text[PROMPT + step]);
        group.step(text[step], text[PROMPT + step]);
        group.logits(1, logits);
        assertTrue(Logits.divergence(alone.logits(), logits) < 1e-2);
      }
      assertEquals(alone.cacheReport().keptSlots(), group.cacheReport(1).keptSlots());
    }
  }

  @Test
  void twoGpusShareTheLayers() {
    assumeFalse(gpus.size() < 2, "there is one GPU here");
    SessionOptions policy = options().withCachePolicy(half());
    Run one = run(on(gpus.getFirst()), policy);
    Run two =
        run(
            ModelOptions.defaults()
                .withDevices(gpus.subList(0, 2))
                .withTensorSplit(List.of(2.0, 3.0)),
            policy);
    assertEquals(
        List.of(gpus.get(0), gpus.get(0), gpus.get(1), gpus.get(1)),
        two.report.layers().stream().map(LayerPlace::device).toList());
    for (int step = 0; step <= STEPS; step++) {
      assertEquals(Logits.best(one.logits[step]), Logits.best(two.logits[step]));
    }
  }
}
