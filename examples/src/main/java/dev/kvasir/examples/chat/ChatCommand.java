package dev.kvasir.examples.chat;

import dev.kvasir.KvType;
import dev.kvasir.KvasirException;
import dev.kvasir.SessionOptions;
import dev.kvasir.StopReason;
import dev.kvasir.cache.FastGen;
import dev.kvasir.examples.options.CacheArguments;
import dev.kvasir.examples.options.ContextArguments;
import dev.kvasir.examples.options.ModelArguments;
import dev.kvasir.examples.options.SamplingArguments;
import dev.kvasir.examples.options.SessionArguments;
import dev.kvasir.examples.options.TextFile;
import dev.kvasir.examples.terminal.CommandFailure;
import dev.kvasir.examples.terminal.StandardStreams;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;

/** A conversation, in a terminal, over a pipe, or of one question. */
@Command(
    name = "chat",
    description = {
      "Talks to a model.",
      "",
      "In a terminal lines are edited and commands like /heads are understood. Of a pipe every line is a message or a command."
          + " The answers go to standard output, everything else to standard error."
    })
public final class ChatCommand implements Callable<Integer> {
  private final StandardStreams streams;

  @Spec private CommandSpec command;
  @Mixin private ModelArguments model;
  @Mixin private ContextArguments context;
  @Mixin private SessionArguments session;
  @Mixin private SamplingArguments sampling;
  @Mixin private CacheArguments cache;

  @Option(
      names = {"-p", "--prompt"},
      paramLabel = "TEXT",
      description = "Answer this once and exit.")
  private @Nullable String prompt;

  @Option(
      names = {"-f", "--file"},
      paramLabel = "FILE",
      description =
          "Read the message from a file, - for standard input; with -p the file's text comes first. Answers once and exits.")
  private @Nullable Path file;

  @Option(
      names = {"-i", "--interactive"},
      description = "Go on with the conversation after the message of -p and -f.")
  private boolean interactive;

  @Option(
      names = {"-sys", "--system-prompt"},
      paramLabel = "TEXT",
      description = "What the model is told before the conversation.")
  private @Nullable String systemPrompt;

  @Option(
      names = {"-n", "--predict", "--n-predict"},
      paramLabel = "N",
      defaultValue = "-1",
      description = "Most tokens of an answer; -1: until the context is full. Default: -1.")
  private int maxTokens;

  @Option(
      names = "--kv-save-profile",
      paramLabel = "FILE",
      description = "Write the profile to a file at the end, for --kv-profile.")
  private @Nullable Path saveProfile;

  /** A command on these streams; picocli sets the rest. */
  @SuppressWarnings("NullAway.Init")
  public ChatCommand(StandardStreams streams) {
    this.streams = streams;
  }

  @Override
  public Integer call() {
    var choices = choices();
    var first = firstMessage();
    try (var loaded = model.load(streams, cache.adaptive());
        var conversation = new Conversation(loaded, choices, streams, streams.errTerminal())) {
      int exitCode = 0;
      if (first != null) {
        exitCode = exitCode(conversation.answer(first));
      }
      if (first == null || (interactive && exitCode == 0)) {
        exitCode =
            streams.interactive()
                ? inTerminal(
                    conversation, loaded.file().getFileName() + ": " + loaded.description())
                : overPipe(conversation);
      }
      save(conversation);
      return exitCode;
    }
  }

  /**
   * What the session is to be opened with, the best first. Where nobody says how the cache is held
   * it is Foresight on q8_0, or what the model has a path for.
   */
  private List<SessionOptions> choices() {
    if (saveProfile != null || !cache.leavesPolicyOpen()) {
      return List.of(options(cache.over(context.over(session.options()))));
    }
    var foresight = options(cache.foresightOver(context.over(session.options())));
    if (cache.asksOfForesight()) {
      return session.typesGiven() ? List.of(foresight) : List.of(onQ8(foresight), foresight);
    }
    var fallback = options(cache.fastgenOver(context.over(session.options())));
    return session.typesGiven()
        ? List.of(foresight, fallback)
        : List.of(onQ8(foresight), foresight, fallback);
  }

  private static SessionOptions onQ8(SessionOptions options) {
    return options.withKeyType(KvType.Q8_0).withValueType(KvType.Q8_0);
  }

  private SessionOptions options(SessionOptions held) {
    if (maxTokens < -1) {
      throw new ParameterException(
          command.commandLine(),
          "Invalid value for option '--predict': " + maxTokens + " (-1 is no limit)");
    }
    var options =
        held.withSampling(sampling.sampling())
            .withSystemPrompt(systemPrompt)
            .withMaxTokens(Math.max(0, maxTokens));
    if (saveProfile != null) {
      if (!(options.cachePolicy() instanceof FastGen)) {
        throw new ParameterException(
            command.commandLine(),
            "--kv-save-profile needs --kv-policy fastgen: other policies do not choose by such a profile");
      }
      var directory = saveProfile.toAbsolutePath().getParent();
      if (directory == null || !Files.isDirectory(directory)) {
        throw new CommandFailure(
            "The profile cannot be saved to "
                + saveProfile
                + ": there is no directory "
                + directory);
      }
    }
    return options;
  }

  private @Nullable String firstMessage() {
    if (file == null) {
      return prompt;
    }
    var text = TextFile.read(file, streams);
    return prompt == null ? text : text.stripTrailing() + "\n\n" + prompt;
  }

  private int inTerminal(Conversation conversation, String description) {
    streams.err().println(description + "; /help lists the commands.");
    try (var lines = TerminalLines.ofProcess()) {
      return converse(conversation, lines);
    }
  }

  private int overPipe(Conversation conversation) {
    return converse(conversation, Lines.of(streams.in()));
  }

  /**
   * A message that fails, or is interrupted, does not end the conversation, but is remembered in
   * the exit code of a pipe.
   */
  private int converse(Conversation conversation, Lines lines) {
    var commands = new Commands(conversation.session(), streams, lines::width);
    int exitCode = 0;
    boolean interrupted = false;
    for (var line = lines.next(interrupted); line != null; line = lines.next(interrupted)) {
      interrupted = false;
      try {
        if (line.startsWith("/")) {
          if (!commands.run(line)) {
            break;
          }
        } else if (!line.isBlank()) {
          interrupted = conversation.answer(line.strip()) == StopReason.CANCELLED;
          if (interrupted && !streams.interactive()) {
            exitCode = Interrupt.EXIT_CODE;
          }
        }
      } catch (KvasirException e) {
        streams.err().println("kvasir: " + e.getMessage());
        exitCode = streams.interactive() ? 0 : Math.max(exitCode, 1);
      }
      if (streams.out().checkError()) {
        break;
      }
    }
    return lines.endedByCtrlC() ? Interrupt.EXIT_CODE : exitCode;
  }

  private void save(Conversation conversation) {
    if (saveProfile != null) {
      var profile =
          conversation
              .session()
              .profile()
              .orElseThrow(() -> new CommandFailure(Commands.noProfile(conversation.session())));
      profile.save(saveProfile);
    }
  }

  private static int exitCode(StopReason reason) {
    return reason == StopReason.CANCELLED ? Interrupt.EXIT_CODE : 0;
  }
}
