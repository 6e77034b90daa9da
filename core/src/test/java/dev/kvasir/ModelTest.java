package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertDoesNotThrow;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.bindings.generated.NativeApi;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

class ModelTest {
  @BeforeAll
  static void startLibraries() {
    assertFalse(Devices.list().isEmpty());
  }

  @Test
  void saysWhatItIs() {
    Model model = TestModels.plain();
    assertTrue(model.description().contains("llama"), model.description());
    assertEquals(30, model.layerCount());
    assertEquals(49_152, model.vocabularySize());
    assertEquals(8_192, model.trainedContextLength());
    assertEquals(List.of("CPU"), model.devices());
    assertEquals(TestModels.path(), model.file());
    assertTrue(model.parameterCount() > 130_000_000);
    assertTrue(model.sizeBytes() > 90_000_000 && model.sizeBytes() < 98_362_432);
    assertTrue(model.chatTemplate().orElseThrow().contains("<|im_start|>"));
  }

  @Test
  void kvTypesAreThoseOfGgml() {
    for (KvType type : KvType.values()) {
      assertEquals(type.label(), NativeApi.ggml_type_name(type.ggmlType()).getString(0));
      assertEquals(type.blockSize(), NativeApi.ggml_blck_size(type.ggmlType()), type.label());
      assertEquals(type.blockBytes(), NativeApi.ggml_type_size(type.ggmlType()), type.label());
    }
  }

  @Test
  void devicesNameTheCpu() {
    Device cpu =
        Devices.list().stream()
            .filter(device -> device.type() == DeviceType.CPU)
            .findFirst()
            .orElseThrow();
    assertEquals("CPU", cpu.name());
    assertTrue(cpu.totalMemory() > 0);
    assertTrue(cpu.attentionPath().startsWith("native kernels ("), cpu.attentionPath());
  }

  @Test
  void textSurvivesTokens() {
    Model model = TestModels.plain();
    for (String text :
        List.of(
            "",
            "a",
            " two  spaces",
            "line\nbreak\ttab",
            "caf\u00e9 \ud83d\ude00 \u65e5\u672c\u8a9e",
            TestModels.prose())) {
      assertEquals(text, model.detokenize(model.tokenize(text, false, false)));
    }
  }

  @Test
  void specialTokensAreParsedOnlyOnRequest() {
    Model model = TestModels.plain();
    int[] parsed = model.tokenize("<|im_end|>", false, true);
    assertEquals(1, parsed.length);
    assertTrue(model.isEndOfGeneration(parsed[0]));
    assertEquals("<|im_end|>", model.tokenText(parsed[0]));
    int[] plain = model.tokenize("<|im_end|>", false, false);
    assertTrue(plain.length > 1);
    assertEquals("<|im_end|>", model.detokenize(plain));
    assertFalse(model.isEndOfGeneration(plain[0]));
  }

  @Test
  void idsOutsideTheVocabularyAreRefused() {
    Model model = TestModels.plain();
    assertThrows(IllegalArgumentException.class, () -> model.tokenText(-1));
    assertThrows(IllegalArgumentException.class, () -> model.tokenText(model.vocabularySize()));
    assertThrows(IllegalArgumentException.class, () -> model.detokenize(1, 2, Integer.MAX_VALUE));
    assertThrows(IllegalArgumentException.class, () -> model.isEndOfGeneration(Integer.MIN_VALUE));
  }

  @Test
  void manyThreadsUseOneModel() throws Exception {
    Model model = TestModels.plain();
    String text = TestModels.prose().substring(0, 4000);
    int[] expected = model.tokenize(text, true, false);
    try (var threads = Executors.newFixedThreadPool(4)) {
      List<Callable<int[]>> jobs = new ArrayList<>();
      for (int i = 0; i < 16; i++) {
        jobs.add(() -> model.tokenize(text, true, false));
      }
      for (Future<int[]> result : threads.invokeAll(jobs)) {
        assertArrayEquals(expected, result.get());
      }
    }
  }

  @Test
  void sessionsOutliveTheClosingOfTheirModel() {
    Model model = Model.load(TestModels.path());
    Session session = model.newSession(TestModels.options().withMaxTokens(4));
    model.close();
    assertDoesNotThrow(model::close);
    assertThrows(ModelStateException.class, model::newSession);
    assertThrows(ModelStateException.class, () -> model.tokenize("a", false, false));
    session.evaluate(TestModels.proseTokens(8));
    assertEquals(49_152, session.logits().length);
    assertFalse(session.chat("Hello?").text().isEmpty());
    session.close();
    assertThrows(SessionStateException.class, session::logits);
  }

  @Test
  void loadingReportsItsProgressAndCanBeCancelled() {
    List<Double> fractions = new ArrayList<>();
    ModelOptions watched =
        ModelOptions.defaults()
            .withProgress(
                fraction -> {
                  fractions.add(fraction);
                  return true;
                });
    Model.load(TestModels.path(), watched).close();
    assertEquals(1.0, fractions.getLast());
    assertTrue(fractions.size() > 2);
    for (int i = 1; i < fractions.size(); i++) {
      assertTrue(fractions.get(i) >= fractions.get(i - 1));
    }
    assertThrows(
        LoadCancelledException.class,
        () -> Model.load(TestModels.path(), watched.withProgress(fraction -> fraction < 0.3)));
    assertThrows(
        ArithmeticException.class,
        () ->
            Model.load(
                TestModels.path(),
                watched.withProgress(
                    fraction -> {
                      throw new ArithmeticException("from the listener");
                    })));
  }
}
