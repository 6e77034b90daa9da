package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Path;
import java.util.Arrays;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Element types of the cache and sizes of batches, on a small model. */
class KvTypeTest {
  @TempDir Path directory;

  private static int[] tokens(int count) {
    int[] tokens = new int[count];
    Arrays.setAll(tokens, i -> 3 + i * i % 313);
    return tokens;
  }

  @ParameterizedTest
  @CsvSource({"F16,F16", "BF16,Q8_0", "Q8_0,Q4_0", "Q5_1,Q5_0", "Q4_1,F16"})
  void everyTypeTakesItsBytes(KvType key, KvType value) {
    Path file = SyntheticModels.llama(directory.resolve("small.gguf"), 2);
    SessionOptions options = TestModels.options().withKeyType(key).withValueType(value);
    try (Model adaptive = Model.load(file);
        Model plain = Model.load(file, ModelOptions.defaults().withAdaptiveCache(false));
        Session ours = adaptive.newSession(options);
        Session theirs = plain.newSession(options)) {
      for (Session session : new Session[] {ours, theirs}) {
        session.evaluate(tokens(40));
      }
      long slots = ours.cacheReport().keptSlots();
      assertEquals(2 * 2 * 40, slots); // layers, KV heads, tokens
      assertEquals(slots * (rowBytes(key) + rowBytes(value)), ours.cacheReport().keptBytes());
      assertEquals(theirs.cacheReport().keptBytes(), ours.cacheReport().keptBytes());
    }
  }

  private static long rowBytes(KvType type) {
    return (long) SyntheticModels.HEAD_DIMENSION / type.blockSize() * type.blockBytes();
  }

  @Test
  void batchesDoNotMatter() {
    Path file = SyntheticModels.llama(directory.resolve("small.gguf"), 2);
    try (Model model = Model.load(file);
        Session whole = model.newSession(TestModels.options());
        Session portions =
            model.newSession(TestModels.options().withBatchSize(50).withMicroBatchSize(17))) {
      whole.evaluate(tokens(333));
      portions.evaluate(tokens(333));
      assertTrue(Logits.divergence(whole.logits(), portions.logits()) < 1e-6);
      assertEquals(whole.cacheReport().keptSlots(), portions.cacheReport().keptSlots());
    }
  }
}
