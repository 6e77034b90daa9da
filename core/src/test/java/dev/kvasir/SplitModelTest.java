package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.function.Consumer;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Models in several files. */
class SplitModelTest {
  @TempDir Path directory;

  /** Writes a model in two parts and returns the first. */
  private Path split(Consumer<GgufImage> changeOfSecond) {
    GgufImage first = FuzzModels.llama();
    GgufImage second = new GgufImage();
    List<GgufImage.Tensor> all = List.copyOf(first.tensors);
    first.tensors.subList(all.size() / 2, all.size()).clear();
    second.tensors.addAll(all.subList(all.size() / 2, all.size()));
    first.putShort("split.no", 0).putShort("split.count", 2);
    GgufImage.Pair count = new GgufImage.Pair("split.tensors.count", GgufImage.INT32);
    count.elements.add(GgufImage.little(4, all.size()));
    first.pairs.add(count);
    second.putShort("split.no", 1).putShort("split.count", 2);
    second.pairs.add(count);
    changeOfSecond.accept(second);
    second.write(directory.resolve("model-00002-of-00002.gguf"));
    return first.write(directory.resolve("model-00001-of-00002.gguf"));
  }

  private static float[] logits(Path file) {
    try (Model model = Model.load(file);
        Session session =
            model.newSession(SessionOptions.defaults().withContextSize(64).withThreads(1))) {
      session.evaluate(1, 2, 3, 270, 280);
      float[] logits = new float[model.vocabularySize()];
      session.logits(logits);
      return logits;
    }
  }

  @Test
  void computesAsTheWholeModel() {
    float[] whole = logits(FuzzModels.llama().write(directory.resolve("whole.gguf")));
    assertArrayEquals(whole, logits(split(second -> {})));
  }

  private void isRefused(Consumer<GgufImage> change, String... words) {
    Path file = split(change);
    String message = assertThrows(ModelLoadException.class, () -> Model.load(file)).getMessage();
    for (String word : words) {
      assertTrue(message.contains(word), message);
    }
  }

  @Test
  void aPartWithAnotherNumber() {
    isRefused(second -> second.putShort("split.no", 2), "00002-of-00002", "split.no", "1");
  }

  @Test
  void aPartWithoutANumber() {
    isRefused(second -> second.remove("split.no"), "00002-of-00002", "split.no", "missing");
  }

  @Test
  void aPartWhoseNumberIsOfAnotherType() {
    isRefused(second -> second.put("split.no", 1), "00002-of-00002", "split.no", "uint16");
  }

  @Test
  void aTensorInTwoParts() {
    isRefused(
        second -> second.tensors.add(FuzzModels.llama().tensor("token_embd.weight")),
        "token_embd.weight");
  }

  @Test
  void aPartThatIsMissingOrCutOff() throws IOException {
    Path first = split(second -> {});
    Path second = directory.resolve("model-00002-of-00002.gguf");
    byte[] bytes = Files.readAllBytes(second);
    Files.write(second, Arrays.copyOf(bytes, bytes.length / 2));
    String cut = assertThrows(ModelLoadException.class, () -> Model.load(first)).getMessage();
    assertTrue(cut.contains("00002-of-00002") && cut.contains("cut off"), cut);
    Files.delete(second);
    String missing = assertThrows(ModelLoadException.class, () -> Model.load(first)).getMessage();
    assertTrue(missing.contains("00002-of-00002"), missing);
  }

  @Test
  void theSecondPartAlone() {
    split(second -> second.put("general.architecture", "llama"));
    Path second = directory.resolve("model-00002-of-00002.gguf");
    String message = assertThrows(ModelLoadException.class, () -> Model.load(second)).getMessage();
    assertTrue(message.contains("first part"), message);
  }
}
