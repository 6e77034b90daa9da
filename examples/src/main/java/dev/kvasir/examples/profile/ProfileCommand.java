package dev.kvasir.examples.profile;

import dev.kvasir.Session;
import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.FastGen;
import dev.kvasir.cache.Foresight;
import dev.kvasir.cache.LossProfile;
import dev.kvasir.cache.Profile;
import dev.kvasir.examples.options.CacheArguments;
import dev.kvasir.examples.options.ContextArguments;
import dev.kvasir.examples.options.ModelArguments;
import dev.kvasir.examples.options.SessionArguments;
import dev.kvasir.examples.options.TextFile;
import dev.kvasir.examples.terminal.CommandFailure;
import dev.kvasir.examples.terminal.ProgressBar;
import dev.kvasir.examples.terminal.StandardStreams;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;

/** What every KV head needs for a text. */
@Command(
    name = "profile",
    description = "Profiles the KV heads on a text: what each would keep, and what that recovers.")
public final class ProfileCommand implements Callable<Integer> {
  private final StandardStreams streams;

  @Spec private CommandSpec command;
  @Mixin private ModelArguments model;
  @Mixin private ContextArguments context;
  @Mixin private SessionArguments session;
  @Mixin private CacheArguments cache;

  @Option(
      names = {"-f", "--file"},
      paramLabel = "TEXT",
      required = true,
      description = "The text, - for standard input.")
  private Path file;

  @Option(
      names = "--json",
      paramLabel = "FILE",
      description = "Write the profile as JSON too, - for standard output in place of the table.")
  private @Nullable Path json;

  /** A command on these streams; picocli sets the rest. */
  @SuppressWarnings("NullAway.Init")
  public ProfileCommand(StandardStreams streams) {
    this.streams = streams;
  }

  @Override
  public Integer call() {
    var options = cache.over(context.over(session.options()));
    int least =
        switch (options.cachePolicy()) {
          case FastGen fastgen when options.profile() == null -> fastgen.minimumTokens();
          case Foresight foresight -> foresight.minimumTokens();
          default ->
              throw new ParameterException(
                  command.commandLine(),
                  "profile makes a profile: --kv-policy full or none and --kv-profile have no meaning here");
        };
    if (json != null
        && !toStandardOutput()
        && !Files.isDirectory(json.toAbsolutePath().resolveSibling("."))) {
      throw new CommandFailure(
          "The profile cannot be saved to " + json + ": there is no such directory.");
    }
    var text = TextFile.read(file, streams);
    try (var loaded = model.load(streams, true);
        var bar = new ProgressBar(streams, "Profiling");
        var opened =
            loaded.newSession(
                options.withPrefillListener((done, total) -> bar.update(done, total)))) {
      var tokens = loaded.tokenize(text, true, false);
      if (tokens.length < least) {
        throw new CommandFailure(
            "The text has %d tokens, too few to judge heads by; a profile needs %d."
                .formatted(tokens.length, least));
      }
      opened.evaluate(tokens);
      bar.clear();
      if (options.cachePolicy() instanceof Foresight) {
        show(opened.lossProfile().orElseThrow(() -> none(opened)), opened.cacheReport());
      } else {
        show(opened.profile().orElseThrow(() -> none(opened)), opened.cacheReport());
      }
      return 0;
    }
  }

  private static CommandFailure none(Session session) {
    return new CommandFailure(
        "There is no profile: "
            + session.cacheReport().policyFailure().orElse("the policy has not decided"));
  }

  private void show(Profile profile, CacheReport report) {
    if (json != null && !toStandardOutput()) {
      profile.save(json);
    }
    if (!inPlaceOfTheTable(profile.toJson())) {
      var out = streams.out();
      out.print(ProfileTable.heads(profile));
      showMap(report);
      out.print(ProfileTable.targets(profile));
      out.println();
      out.print(ProfileTable.summary(profile));
    }
  }

  private void show(LossProfile profile, CacheReport report) {
    if (json != null && !toStandardOutput()) {
      profile.save(json);
    }
    if (!inPlaceOfTheTable(profile.toJson())) {
      var out = streams.out();
      out.print(LossTable.heads(report));
      showMap(report);
      out.print(LossTable.budgets(profile));
      out.println();
      out.print(LossTable.summary(profile, report));
    }
  }

  /** Writes the JSON to standard output, if it is wanted there. */
  private boolean inPlaceOfTheTable(String text) {
    if (toStandardOutput()) {
      streams.out().println(text);
    }
    return toStandardOutput();
  }

  private void showMap(CacheReport report) {
    var out = streams.out();
    boolean colours = streams.outTerminal() && System.getenv("NO_COLOR") == null;
    out.println();
    out.print(new HeadMap(report, 100, colours).render());
    out.println();
  }

  private boolean toStandardOutput() {
    return Path.of("-").equals(json);
  }
}
