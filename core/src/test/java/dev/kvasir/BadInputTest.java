package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.sun.management.OperatingSystemMXBean;
import dev.kvasir.cache.CachePolicy;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.Profile;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.lang.management.ManagementFactory;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** One clear exception for each thing that can be wrong, and everything else goes on working. */
class BadInputTest {
  @TempDir Path directory;

  @AfterEach
  void theRestStillWorks() {
    try (Session session =
        TestModels.adaptive().newSession(TestModels.options().withMaxTokens(2))) {
      assertFalse(session.complete("The sea").text().isEmpty());
    }
  }

  private static String refused(Path file) {
    return assertThrows(ModelLoadException.class, () -> Model.load(file)).getMessage();
  }

  @Test
  void aMissingFile() {
    String message = refused(directory.resolve("none.gguf"));
    assertTrue(message.contains("none.gguf") && message.contains("does not exist"), message);
  }

  @Test
  void aDirectory() {
    assertTrue(refused(directory).contains("is not a file"));
  }

  @Test
  void anEmptyFile() throws IOException {
    assertTrue(refused(Files.createFile(directory.resolve("empty.gguf"))).contains("empty"));
  }

  @Test
  void aFileOfAnotherKind() throws IOException {
    Path text =
        Files.writeString(
            directory.resolve("text.gguf"), "Once upon a time there was a file that was no model.");
    assertTrue(refused(text).contains("no GGUF"));
  }

  @ParameterizedTest
  @ValueSource(
      longs = {
        4,
        8,
        20,
        24,
        40,
        1_000,
        20_000,
        700_000,
        1_600_000,
        1_900_000,
        5_000_000,
        60_000_000,
        98_362_431
      })
  void aTruncatedFile(long bytes) throws IOException {
    Path cut = directory.resolve("cut.gguf");
    try (FileChannel from = FileChannel.open(TestModels.path());
        FileChannel to =
            FileChannel.open(cut, StandardOpenOption.CREATE, StandardOpenOption.WRITE)) {
      for (long done = 0; done < bytes; ) {
        done += from.transferTo(done, bytes - done, to);
      }
    }
    String message = refused(cut);
    assertTrue(message.contains("cut off"), message);
  }

  @Test
  void aDamagedHeader() throws IOException {
    Path file = SyntheticModels.llama(directory.resolve("damaged.gguf"), 1);
    try (RandomAccessFile access = new RandomAccessFile(file.toFile(), "rw")) {
      access.seek(8);
      access.write(ByteBuffer.allocate(8).putLong(-1L).array());
    }
    assertTrue(refused(file).contains("damaged"));
  }

  @Test
  void anUnknownArchitecture() {
    Path file = directory.resolve("unknown.gguf");
    new GgufWriter().put("general.architecture", "nonesuch").write(file);
    String message = refused(file);
    assertTrue(message.contains("nonesuch"), message);
  }

  @Test
  void anUnknownDevice() {
    UnknownDeviceException refused =
        assertThrows(
            UnknownDeviceException.class,
            () -> Model.load(TestModels.path(), ModelOptions.defaults().withDevice("TPU7")));
    assertTrue(
        refused.getMessage().contains("TPU7") && refused.getMessage().contains("CPU"),
        refused.getMessage());
    assertThrows(IllegalArgumentException.class, () -> ModelOptions.defaults().withDevice(" "));
  }

  @Test
  void anUnknownKvType() {
    InvalidOptionException refused =
        assertThrows(InvalidOptionException.class, () -> KvType.of("q3_k"));
    assertTrue(
        refused.getMessage().contains("q3_k") && refused.getMessage().contains("q8_0"),
        refused.getMessage());
    assertEquals(KvType.Q8_0, KvType.of("q8_0"));
    assertEquals(KvType.BF16, KvType.of("BF16"));
  }

  @Test
  void quantisedValuesWithoutFlashAttention() {
    InvalidOptionException refused =
        assertThrows(
            InvalidOptionException.class,
            () ->
                TestModels.plain()
                    .newSession(
                        TestModels.options().withFlashAttention(false).withValueType(KvType.Q8_0)));
    assertTrue(refused.getMessage().contains("flash_attn"), refused.getMessage());
  }

  @Test
  void optionsOutOfRange() {
    SessionOptions options = SessionOptions.defaults();
    assertThrows(IllegalArgumentException.class, () -> options.withContextSize(-1));
    assertThrows(IllegalArgumentException.class, () -> options.withBatchSize(0));
    assertThrows(IllegalArgumentException.class, () -> options.withMicroBatchSize(0));
    assertThrows(IllegalArgumentException.class, () -> options.withThreads(-1));
    assertThrows(IllegalArgumentException.class, () -> options.withBatchThreads(100_000));
    assertThrows(IllegalArgumentException.class, () -> options.withMaxTokens(-1));
    assertThrows(IllegalArgumentException.class, () -> options.withCacheMemoryLimit(-1));
    assertThrows(IllegalArgumentException.class, () -> options.withStopSequences("a", ""));
    assertThrows(IllegalArgumentException.class, () -> Sampling.defaults().withTopP(1.5f));
    assertThrows(IllegalArgumentException.class, () -> Sampling.defaults().withMinP(-0.1f));
    assertThrows(
        IllegalArgumentException.class, () -> Sampling.defaults().withTemperature(Float.NaN));
    assertThrows(IllegalArgumentException.class, () -> Sampling.defaults().withRepeatPenalty(0f));
    assertThrows(IllegalArgumentException.class, () -> Sampling.defaults().withSeed(1L << 32));
    // llama.cpp takes this one for a wish to have a seed drawn.
    IllegalArgumentException lastSeed =
        assertThrows(
            IllegalArgumentException.class, () -> Sampling.defaults().withSeed(4_294_967_295L));
    assertTrue(lastSeed.getMessage().contains("4294967294"), lastSeed.getMessage());
    assertEquals(4_294_967_294L, Sampling.defaults().withSeed(4_294_967_294L).seed());
    assertThrows(IllegalArgumentException.class, () -> ModelOptions.defaults().withGpuLayers(-2));
  }

  private static long resident() throws IOException {
    Path status = Path.of("/proc/self/status");
    return Files.exists(status)
        ? Files.readAllLines(status).stream()
            .filter(line -> line.startsWith("VmHWM:"))
            .mapToLong(line -> Long.parseLong(line.replaceAll("\\D", "")) << 10)
            .sum()
        : 0;
  }

  private static String refused(Model model, SessionOptions options) {
    return assertThrows(InvalidOptionException.class, () -> model.newSession(options)).getMessage();
  }

  @Test
  void aContextThatTheMachineCannotHold() throws IOException {
    SessionOptions options =
        TestModels.options().withContextSize(1 << 30).withBatchSize(4096).withMicroBatchSize(4096);
    TestModels.adaptive();
    TestModels.plain();
    long before = resident();
    for (Model model : List.of(TestModels.adaptive(), TestModels.plain())) {
      String message = refused(model, options);
      assertTrue(message.contains("1073741824") && message.contains("GiB"), message);
      assertTrue(message.contains("Use a smaller contextSize"), message);
    }
    String several =
        assertThrows(
                InvalidOptionException.class,
                () ->
                    TestModels.adaptive()
                        .newSessionGroup(
                            2, options.withContextSize(1 << 29).withSampling(Sampling.defaults())))
            .getMessage();
    assertTrue(several.contains("2 sequences") && several.contains("GiB"), several);
    assertTrue(resident() - before < 256 << 20, before + " " + resident());
  }

  @Test
  void rowsThatAreAllocatedAtOnceCountAndOthersDoNot() {
    // A cell of llama.cpp's own cache has 23,040 bytes: keys and values of 30 layers with 3 heads.
    long memory =
        ManagementFactory.getPlatformMXBean(OperatingSystemMXBean.class).getTotalMemorySize();
    SessionOptions options = TestModels.options().withContextSize(Math.toIntExact(memory / 22_000));
    String message = refused(TestModels.plain(), options);
    assertTrue(message.contains("GiB") && message.contains("contextSize"), message);
    try (Session session = TestModels.adaptive().newSession(options)) {
      session.evaluate(TestModels.proseTokens(20));
      assertEquals(options.contextSize(), session.contextSize());
    }
  }

  @Test
  void aLimitForACacheThatIsNotThere() {
    SessionOptions options = TestModels.options().withCacheMemoryLimit(1 << 20);
    InvalidOptionException refused =
        assertThrows(InvalidOptionException.class, () -> TestModels.plain().newSession(options));
    assertTrue(refused.getMessage().contains("cacheMemoryLimit"), refused.getMessage());
  }

  @Test
  void aLimitBelowASingleToken() {
    SessionOptions options = TestModels.options().withCacheMemoryLimit(1);
    try (Session session = TestModels.adaptive().newSession(options)) {
      DecodeException refused = assertThrows(DecodeException.class, () -> session.evaluate(5));
      assertTrue(refused.getMessage().contains("limit"), refused.getMessage());
      assertEquals(0, session.position());
    }
  }

  @Test
  void theSmallestOptionsWork() {
    SessionOptions options =
        TestModels.options()
            .withContextSize(1)
            .withBatchSize(1)
            .withMicroBatchSize(1)
            .withThreads(1);
    try (Session session = TestModels.adaptive().newSession(options)) {
      assertEquals(1, session.contextSize());
      session.evaluate(5);
      assertThrows(ContextFullException.class, () -> session.evaluate(5));
      assertThrows(ContextFullException.class, () -> session.step(5));
    }
    try (Session session = TestModels.adaptive().newSession(options.withContextSize(20))) {
      session.evaluate(TestModels.proseTokens(20));
      assertEquals(20, session.position());
    }
  }

  @Test
  void tokensOutsideTheVocabulary() {
    try (Session session = TestModels.adaptive().newSession(TestModels.options())) {
      assertThrows(IllegalArgumentException.class, () -> session.evaluate(-1));
      assertThrows(IllegalArgumentException.class, () -> session.step(-1));
      assertThrows(
          IllegalArgumentException.class,
          () -> session.evaluate(1, 2, session.model().vocabularySize()));
      assertThrows(IllegalArgumentException.class, () -> session.evaluate());
      assertThrows(IllegalArgumentException.class, () -> session.logits(new float[3]));
      assertThrows(IllegalArgumentException.class, () -> session.complete(""));
      assertEquals(0, session.position());
    }
  }

  @Test
  void aModelWithoutAChatTemplate() {
    Path file = SyntheticModels.llama(directory.resolve("small.gguf"), 1);
    try (Model model = Model.load(file);
        Session session = model.newSession(TestModels.options().withMaxTokens(3))) {
      UnsupportedModelException refused =
          assertThrows(UnsupportedModelException.class, () -> session.chat("Hello"));
      assertTrue(refused.getMessage().contains("complete"), refused.getMessage());
      session.complete("w1 w2").text();
      // The beginning-of-sequence token comes first, once.
      int[] tokens = model.tokenize("w1 w2", true, false);
      assertTrue(session.position() >= tokens.length, session.position() + " " + tokens.length);
    }
  }

  @Test
  void aForeignOrDamagedProfile() {
    FastGen policy = CachePolicy.fastgen();
    Profile profile;
    Path file = SyntheticModels.llama(directory.resolve("foreign.gguf"), 2);
    try (Model model = Model.load(file);
        Session session = model.newSession(TestModels.options().withCachePolicy(policy))) {
      int[] tokens = new int[400];
      for (int i = 0; i < tokens.length; i++) {
        tokens[i] = 3 + i * 7 % 300;
      }
      session.evaluate(tokens);
      profile = session.profile().orElseThrow();
    }
    ProfileException foreign =
        assertThrows(
            ProfileException.class,
            () ->
                TestModels.adaptive()
                    .newSession(TestModels.options().withCachePolicy(policy).withProfile(profile)));
    assertFalse(foreign.getMessage().isBlank());
    String json = profile.toJson();
    assertEquals(profile, Profile.fromJson(json));
    assertThrows(
        ProfileException.class, () -> Profile.fromJson(json.substring(0, json.length() / 2)));
    assertThrows(ProfileException.class, () -> Profile.fromJson("[]"));
    assertThrows(ProfileException.class, () -> Profile.fromJson("no JSON"));
  }
}
