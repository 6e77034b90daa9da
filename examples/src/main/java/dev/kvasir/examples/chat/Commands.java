package dev.kvasir.examples.chat;

import dev.kvasir.Session;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.Foresight;
import dev.kvasir.cache.LossProfile;
import dev.kvasir.cache.Profile;
import dev.kvasir.examples.profile.HeadMap;
import dev.kvasir.examples.terminal.StandardStreams;
import java.nio.file.Path;
import java.util.List;
import java.util.function.IntSupplier;

/**
 * The commands of a conversation: lines that begin with a slash. What they print goes to standard
 * error, which keeps answers apart.
 */
final class Commands {
  /** What can be typed, for completion. */
  static final List<String> NAMES =
      List.of("/help", "/cache", "/heads", "/save", "/seed", "/clear", "/exit");

  private static final String HELP =
      """
      /help       this list
      /cache      what the cache holds, by policy and layer
      /heads      what every KV head keeps, as a map
      /save FILE  writes the profile, for --kv-profile
      /seed       what the answers were drawn by, for --seed
      /clear      forgets the conversation
      /exit       ends the program (also Ctrl-D)
      A line that ends with \\ goes on in the next. Ctrl-C ends an answer, a second one the program.
      """;

  private final Session session;
  private final StandardStreams streams;
  private final boolean colour;
  private final IntSupplier width;

  /**
   * Commands on a session.
   *
   * @param width of the terminal, in columns
   */
  Commands(Session session, StandardStreams streams, IntSupplier width) {
    this.session = session;
    this.streams = streams;
    this.colour = streams.errTerminal() && System.getenv("NO_COLOR") == null;
    this.width = width;
  }

  /**
   * Runs a command.
   *
   * @return whether the conversation goes on
   */
  boolean run(String line) {
    var words = line.strip().split("\\s+", 2);
    var argument = words.length > 1 ? words[1] : "";
    var err = streams.err();
    switch (words[0]) {
      case "/help", "/?" -> err.print(HELP);
      case "/cache" -> err.print(CacheTable.of(session.cacheReport()));
      case "/heads" ->
          err.print(new HeadMap(session.cacheReport(), width.getAsInt(), colour).render());
      case "/save" -> save(argument);
      case "/seed" -> err.println("--seed " + session.seed());
      case "/clear" -> {
        session.clear();
        err.println("The conversation is forgotten.");
      }
      case "/exit", "/quit" -> {
        return false;
      }
      default ->
          err.println(
              "There is no command "
                  + words[0]
                  + "; /help lists them. A message may begin with a space.");
    }
    return true;
  }

  private void save(String file) {
    if (file.isEmpty()) {
      streams.err().println("/save needs a file name");
      return;
    }
    var profile = session.profile();
    var losses = session.lossProfile();
    profile.ifPresent(value -> value.save(Path.of(file)));
    losses.ifPresent(value -> value.save(Path.of(file)));
    profile
        .map(Profile::tokens)
        .or(() -> losses.map(LossProfile::tokens))
        .ifPresentOrElse(
            tokens ->
                streams
                    .err()
                    .println("Saved the profile of %d tokens to %s.".formatted(tokens, file)),
            () -> streams.err().println(noProfile(session)));
  }

  private static String noProfileYet(Session session, int minimumTokens) {
    return "There is no profile yet: the conversation has %d tokens, and it is profiled from %d on."
        .formatted(session.position(), minimumTokens);
  }

  /** Why there is no profile yet. */
  static String noProfile(Session session) {
    return switch (session.options().cachePolicy()) {
      case FastGen fastgen -> noProfileYet(session, fastgen.minimumTokens());
      case Foresight foresight -> noProfileYet(session, foresight.minimumTokens());
      default -> "There is no profile: the cache policy does not need one.";
    };
  }
}
