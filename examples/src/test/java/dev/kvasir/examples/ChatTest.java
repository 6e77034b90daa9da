package dev.kvasir.examples;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.cache.LossProfile;
import dev.kvasir.cache.Profile;
import dev.kvasir.cache.Target;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Conversations over pipes with the default model. */
class ChatTest {
  private static final String QUESTION = "Name the capital of France.";

  @TempDir private Path directory;

  @Test
  void oneAnswerIsAllOfStandardOutput() {
    var run = CommandLineRun.onModel("", "chat", "-p", QUESTION, "-n", "12", "--temp", "0");
    assertEquals(0, run.exitCode(), run::err);
    assertTrue(run.out().contains("Paris"), run::out);
    assertTrue(run.out().endsWith("\n") && !run.out().endsWith("\n\n"), run::out);
    assertEquals("", run.err());
  }

  @Test
  void aPipedLineIsAnsweredAsThePromptIs() {
    var prompt = CommandLineRun.onModel("", "chat", "-p", QUESTION, "-n", "12", "--temp", "0");
    var piped = CommandLineRun.onModel(QUESTION + "\n", "chat", "-n", "12", "--temp", "0");
    assertEquals(prompt.out(), piped.out());
    assertEquals("", piped.err());
  }

  @Test
  void aZeroInAPipedLineIsTextLikeAnyOther() {
    var run = CommandLineRun.onModel("Hi \0 there\nHi\n", "chat", "-n", "1", "--temp", "0");
    assertEquals(0, run.exitCode(), run::err);
    assertEquals(2, run.out().lines().count(), run::out);
    assertEquals("", run.err());
  }

  @Test
  void aFileIsTheMessage() throws IOException {
    var file = Files.writeString(directory.resolve("question.txt"), QUESTION + "\n");
    var prompt =
        CommandLineRun.onModel("", "chat", "-p", QUESTION + "\n", "-n", "12", "--temp", "0");
    assertEquals(
        prompt.out(),
        CommandLineRun.onModel("", "chat", "-f", file.toString(), "-n", "12", "--temp", "0").out());
    assertEquals(
        prompt.out(),
        CommandLineRun.onModel(QUESTION + "\n", "chat", "-f", "-", "-n", "12", "--temp", "0")
            .out());
  }

  @Test
  void commandsAnswerOnStandardError() {
    var file = directory.resolve("profile.json");
    var run =
        CommandLineRun.onModel(
            "Hi\n/cache\n/heads\n/save %s\n/what\n/clear\n/cache\n/exit\nnever read\n"
                .formatted(file),
            "chat",
            "-n",
            "2",
            "--temp",
            "0");
    assertEquals(0, run.exitCode(), run::err);
    assertEquals(1, run.out().lines().count(), run::out);
    assertTrue(run.err().contains("undecided"), run::err);
    assertTrue(run.err().contains("KV head 2  " + "?".repeat(30)), run::err);
    assertTrue(run.err().contains("There is no profile yet"), run::err);
    assertTrue(run.err().contains("no command /what"), run::err);
    assertTrue(run.err().contains("\n0 tokens;"), run::err); // after /clear
    assertFalse(Files.exists(file));
  }

  @Test
  void nobodyAskedSoForesightHoldsThirtyFivePercent() throws IOException {
    var text = Files.writeString(directory.resolve("text.txt"), Texts.harbour(3000));
    var losses = directory.resolve("losses.json");
    var run =
        CommandLineRun.onModel(
            "/cache\n/heads\n/save " + losses + "\n",
            "chat",
            "-f",
            text.toString(),
            "-n",
            "1",
            "-i");
    assertEquals(0, run.exitCode(), run::err);
    var total =
        run.err()
            .lines()
            .filter(line -> line.startsWith("foresight "))
            .findFirst()
            .orElseThrow(() -> new AssertionError(run.err()));
    double kept = Double.parseDouble(total.strip().split("\\s+", -1)[4].replace("%", ""));
    assertTrue(kept > 45 && kept < 70, total); // 35% of f16's bytes, in slots of q8_0
    assertTrue(run.err().contains("KV head 2  " + "o".repeat(30)), run::err);
    var profile = LossProfile.load(losses);
    assertEquals(0.35, profile.budget(), 1e-9);
    assertTrue(profile.bytesAt(0.35) > profile.bytesAt(0.2));
  }

  @Test
  void theSeedThatWasDrawnAnswersTheSameAgain() {
    var input = "Tell a story.\n/seed\n";
    var drawn = CommandLineRun.onModel(input, "chat", "-n", "12", "--temp", "1.5");
    assertEquals(0, drawn.exitCode(), drawn::err);
    assertTrue(drawn.err().matches("--seed \\d+\\R"), drawn::err);
    var seed = drawn.err().strip().split(" ", -1)[1];
    var again = CommandLineRun.onModel(input, "chat", "-n", "12", "--temp", "1.5", "--seed", seed);
    assertEquals(drawn.err(), again.err());
    assertEquals(drawn.out(), again.out(), drawn::err);
  }

  @Test
  void aLineMayGoOnInTheNext() {
    var run =
        CommandLineRun.onModel(
            "Name the capital\\\nof France.\n/cache\n", "chat", "-n", "1", "--temp", "0");
    var one =
        CommandLineRun.onModel(
            "Name the capital of France.\n/cache\n", "chat", "-n", "1", "--temp", "0");
    assertEquals(1, run.out().lines().count(), run::out);
    // one line break more or less is one token at most
    assertTrue(Math.abs(tokens(run.err()) - tokens(one.err())) <= 1, run::err);
  }

  private static int tokens(String report) {
    var line = report.lines().filter(text -> text.contains(" tokens; ")).findFirst().orElseThrow();
    return Integer.parseInt(line.substring(0, line.indexOf(' ')));
  }

  @Test
  void ctrlCEndsTheAnswer() {
    var run =
        CommandLineRun.interrupted("", "chat", "-p", "Count to 900.", "-n", "500", "--temp", "0");
    assertEquals(130, run.exitCode(), run::err);
    assertEquals("", run.err());
    assertTrue(run.out().length() < 1000 && run.out().endsWith("\n"), run::out);
  }

  @Test
  void ctrlCOverAPipeEndsOneAnswerAndIsInTheExitCode() {
    var run =
        CommandLineRun.interrupted(
            "Count to 900.\n/cache\n/exit\n", "chat", "-n", "500", "--temp", "0");
    assertEquals(130, run.exitCode(), run::err);
    assertTrue(tokens(run.err()) < 300, run::err);
  }

  @Test
  void aReaderThatLeavesEndsTheConversation() {
    for (var command : List.of("chat -n 500 -p Count", "chat -n 500")) {
      var run = CommandLineRun.unread("Count\nCount\n/cache\n", command.split(" ", -1));
      assertEquals(0, run.exitCode(), run::err);
      assertEquals("", run.err());
    }
  }

  @Test
  void anOverlongMessageDoesNotEndThePipe() {
    var run =
        CommandLineRun.onModel(
            "again and ".repeat(400) + "\nHi\n", "chat", "-c", "256", "-n", "2", "--temp", "0");
    assertEquals(1, run.exitCode());
    assertEquals(1, run.out().lines().count(), run::out);
    assertEquals(1, run.err().lines().count(), run::err);
  }

  @Test
  void aProfileIsSavedAndUsedAgain() throws IOException {
    var profile = directory.resolve("profile.json");
    var text = Files.writeString(directory.resolve("text.txt"), Texts.harbour(1000));
    var saved =
        CommandLineRun.onModel(
            "",
            "chat",
            "-f",
            text.toString(),
            "-n",
            "1",
            "--kv-budget",
            "50%",
            "--kv-save-profile",
            profile.toString());
    assertEquals(0, saved.exitCode(), saved::err);
    assertEquals(Target.budgetFraction(0.5), Profile.load(profile).target());

    var copy = directory.resolve("copy.json");
    var again =
        CommandLineRun.onModel(
            Texts.harbour(1300).replace('\n', ' ') + "\n/cache\n/save " + copy + "\n",
            "chat",
            "-n",
            "1",
            "--kv-profile",
            profile.toString(),
            "--kv-budget",
            "25%");
    assertEquals(0, again.exitCode(), again::err);
    var total =
        again
            .err()
            .lines()
            .filter(line -> line.startsWith("all "))
            .findFirst()
            .orElseThrow()
            .split("\\s+", -1);
    double kept = Double.parseDouble(total[4].replace("%", ""));
    assertTrue(kept < 40, again::err);
    assertEquals(Profile.load(profile).withTarget(Target.budgetFraction(0.25)), Profile.load(copy));
  }
}
