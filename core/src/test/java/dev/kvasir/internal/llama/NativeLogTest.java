package dev.kvasir.internal.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;

import dev.kvasir.bindings.generated.NativeApi;
import java.lang.System.Logger;
import java.util.ArrayList;
import java.util.List;
import java.util.ResourceBundle;
import org.junit.jupiter.api.Test;

class NativeLogTest {
  private final List<String> lines = new ArrayList<>();
  private final NativeLog.Channel channel = new NativeLog.Channel(new Recorder());

  private final class Recorder implements Logger {
    @Override
    public String getName() {
      return "recorder";
    }

    @Override
    public boolean isLoggable(Level level) {
      return true;
    }

    @Override
    public void log(Level level, ResourceBundle bundle, String message, Throwable thrown) {
      lines.add(level + " " + message);
    }

    @Override
    public void log(Level level, ResourceBundle bundle, String format, Object... parameters) {
      lines.add(level + " " + format);
    }
  }

  @Test
  void fragmentsAreJoinedToLines() {
    channel.accept(NativeApi.GGML_LOG_LEVEL_INFO(), "loading ");
    channel.accept(NativeApi.GGML_LOG_LEVEL_CONT(), ".");
    channel.accept(NativeApi.GGML_LOG_LEVEL_CONT(), ".");
    assertEquals(List.of(), lines);
    channel.accept(NativeApi.GGML_LOG_LEVEL_CONT(), " done\nnext\nrest");
    assertEquals(List.of("DEBUG loading .. done", "DEBUG next"), lines);
    channel.accept(NativeApi.GGML_LOG_LEVEL_WARN(), "{0} is no parameter\n");
    assertEquals(
        List.of("DEBUG loading .. done", "DEBUG next", "DEBUG rest", "WARNING {0} is no parameter"),
        lines);
  }

  @Test
  void levelsAreThoseOfJava() {
    channel.accept(NativeApi.GGML_LOG_LEVEL_DEBUG(), "a\n");
    channel.accept(NativeApi.GGML_LOG_LEVEL_INFO(), "b\n");
    channel.accept(NativeApi.GGML_LOG_LEVEL_WARN(), "c\n");
    channel.accept(NativeApi.GGML_LOG_LEVEL_ERROR(), "d\n");
    channel.accept(NativeApi.GGML_LOG_LEVEL_NONE(), "e\n");
    assertEquals(List.of("TRACE a", "DEBUG b", "WARNING c", "ERROR d", "DEBUG e"), lines);
  }

  @Test
  void theLastErrorsOfAThreadAreKept() throws InterruptedException {
    NativeLog.clearErrors();
    for (int i = 0; i < 10; i++) {
      channel.accept(NativeApi.GGML_LOG_LEVEL_ERROR(), "error " + i + "\n");
    }
    Thread other =
        new Thread(() -> channel.accept(NativeApi.GGML_LOG_LEVEL_ERROR(), "elsewhere\n"));
    other.start();
    other.join();
    assertEquals(
        List.of(
            "error 2", "error 3", "error 4", "error 5", "error 6", "error 7", "error 8", "error 9"),
        NativeLog.errors());
    NativeLog.clearErrors();
    assertEquals(List.of(), NativeLog.errors());
  }
}
