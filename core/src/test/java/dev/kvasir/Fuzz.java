package dev.kvasir;

import dev.kvasir.cache.CachePolicy;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/**
 * Runs {@link FuzzCases} in child JVMs: one for many cases, and the next one from the case behind
 * that of which it died.
 */
final class Fuzz {
  /** So long without a sign of life is a hang, on a busy machine too. */
  private static final int PATIENCE_SECONDS = 180;

  /**
   * What came of the cases.
   *
   * @param loaded files that were right enough to compute with
   * @param refused exceptions of ours, by their class
   * @param wrong what must not be: deaths, hangs, other exceptions, too much memory
   */
  record Summary(long cases, long loaded, Map<String, Long> refused, List<String> wrong) {
    @Override
    public String toString() {
      return cases
          + " cases: "
          + loaded
          + " loaded, refused "
          + refused
          + ", wrong "
          + wrong.size()
          + wrong.stream().map(line -> "\n  " + line).reduce("", String::concat);
    }
  }

  private Fuzz() {}

  /** Writes the right files that the wrong ones are made of. */
  static Path seeds(Path directory) throws IOException {
    Path seeds = Files.createDirectories(directory.resolve("seeds"));
    FuzzModels.write(seeds);
    Path llama = seeds.resolve("llama.gguf");
    try (Model model = Model.load(llama);
        Session session =
            model.newSession(
                SessionOptions.defaults()
                    .withContextSize(512)
                    .withThreads(1)
                    .withCachePolicy(CachePolicy.fastgen()))) {
      int[] tokens = new int[400];
      for (int i = 0; i < tokens.length; i++) {
        tokens[i] = 3 + i * 7 % 290;
      }
      session.evaluate(tokens);
      Files.writeString(seeds.resolve("profile.json"), session.profile().orElseThrow().toJson());
    }
    return seeds;
  }

  static Summary run(
      FuzzCases.Kind kind, long seed, long first, long count, Path directory, Path models)
      throws IOException, InterruptedException {
    Map<String, Long> refused = new TreeMap<>();
    List<String> wrong = new ArrayList<>();
    long loaded = 0;
    long next = first;
    while (next < first + count) {
      long begun = -1;
      Deque<String> last = new ArrayDeque<>();
      boolean done = false;
      try (Child child = new Child(kind, seed, next, first + count - next, directory, models)) {
        while (!done) {
          String line = child.line();
          if (line == null) {
            break;
          }
          if (line.startsWith("begin ")) {
            begun = Long.parseLong(line.substring(6));
            last.clear();
          } else if (line.startsWith("end ")) {
            String end = line.substring(line.indexOf(' ', 4) + 1);
            if (end.startsWith("WRONG")) {
              wrong.add(told("case " + begun + ": " + end));
            } else if (end.startsWith("loaded")) {
              loaded++;
            } else {
              refused.merge(end.substring(0, end.indexOf(':')), 1L, Long::sum);
            }
            next = begun + 1;
          } else if (line.equals("done")) {
            done = true;
          } else {
            last.add(line);
            if (last.size() > 6) {
              last.removeFirst();
            }
          }
        }
        if (!done) {
          wrong.add(
              told(
                  "case "
                      + Math.max(begun, next)
                      + ": "
                      + child.end()
                      + ": "
                      + String.join(" | ", last)));
          next = Math.max(begun, next) + 1;
        }
      }
    }
    return new Summary(count, loaded, refused, wrong);
  }

  /** Says at once what is wrong: a run may take hours. */
  private static String told(String wrong) {
    System.out.println(wrong);
    return wrong;
  }

  /** A child JVM, line by line. */
  private static final class Child implements AutoCloseable {
    private static final String END = "\0";
    private final Process process;
    private final BlockingQueue<String> lines = new LinkedBlockingQueue<>();
    private boolean hung;

    Child(FuzzCases.Kind kind, long seed, long first, long count, Path directory, Path models)
        throws IOException {
      List<String> command =
          ChildJvm.command(
              FuzzCases.class,
              List.of(
                  "-Xmx256m",
                  "-XX:+UseSerialGC",
                  "-XX:TieredStopAtLevel=1",
                  "-XX:-CreateCoredumpOnCrash",
                  "-XX:ErrorFile=/dev/null"),
              List.of(
                  kind.name(),
                  Long.toString(seed),
                  Long.toString(first),
                  Long.toString(count),
                  models.toAbsolutePath().toString()));
      ProcessBuilder builder =
          new ProcessBuilder(command).directory(directory.toFile()).redirectErrorStream(true);
      builder.environment().put("GGML_NO_BACKTRACE", "1"); // it would ask a debugger
      process = builder.start();
      Thread reader = new Thread(this::read, "child");
      reader.setDaemon(true);
      reader.start();
    }

    private void read() {
      try (BufferedReader in =
          new BufferedReader(
              new InputStreamReader(process.getInputStream(), StandardCharsets.UTF_8))) {
        for (String line = in.readLine(); line != null; line = in.readLine()) {
          lines.add(line);
        }
      } catch (IOException e) {
        lines.add(e.toString());
      }
      lines.add(END);
    }

    /** The next line; null if there will be none. */
    String line() throws InterruptedException {
      String line = lines.poll(PATIENCE_SECONDS, TimeUnit.SECONDS);
      hung = line == null;
      return hung || line.equals(END) ? null : line;
    }

    /** How the child ended before its cases did. */
    String end() throws InterruptedException {
      if (hung) {
        return "WRONG hang";
      }
      return "WRONG death, exit status " + process.waitFor();
    }

    @Override
    public void close() {
      process.destroyForcibly();
    }
  }
}
