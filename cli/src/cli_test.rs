//! The grammar holds together, and every command explains itself.

use clap::{CommandFactory as _, error::ErrorKind};

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_grammar_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_renders_help_with_a_line_about_itself() {
    fn visit(command: &mut clap::Command, path: &str) {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        assert!(!about.is_empty(), "{path} says nothing about itself");
        assert!(command.render_long_help().to_string().contains("Usage:"), "{path}");
        let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
        for argument in arguments.map(|argument| (argument.get_id().to_string(), argument.get_help().is_some())) {
            assert!(argument.1, "{path}: {} has no help", argument.0);
        }
        for command in command.get_subcommands_mut() {
            let path = format!("{path} {}", command.get_name());
            visit(command, &path);
        }
    }
    let mut command = Cli::command();
    command.build();
    visit(&mut command, "quorate");
}

#[test]
fn common_flags_may_stand_behind_the_command() {
    let cli = parse("quorate topic list --endpoints a:1;b:2 -o json").unwrap();
    assert_eq!((cli.endpoints.as_str(), cli.output), ("a:1;b:2", Format::Json));
    assert!(matches!(cli.command, Command::Topic(TopicCommand::List)));
    let watch = |line: &str| {
        let Command::Cluster(ClusterCommand::Status(status)) = parse(line).unwrap().command else {
            panic!("{line} is not about the status")
        };
        status.watch.map(|every| every.as_secs_f64())
    };
    assert_eq!(watch("quorate cluster status"), None);
    assert_eq!(watch("quorate cluster status --watch"), Some(1.0));
    assert_eq!(watch("quorate cluster status --watch -o json"), Some(1.0));
    assert_eq!(watch("quorate cluster status --watch=0.5"), Some(0.5));
    assert_eq!(watch("quorate cluster status --watch 5"), Some(5.0));
    for line in ["0", "-1", "nan", "inf", "often"].map(|every| format!("quorate cluster status --watch={every}")) {
        assert!(parse(&line).is_err(), "{line}");
    }
    for line in ["quorate cluster transfer", "quorate cluster transfer 2", "quorate cluster history -o json"] {
        assert!(matches!(parse(line).unwrap().command, Command::Cluster(_)), "{line}");
    }
    assert!(parse("quorate bench failover --kind cut --trials 3 --save f.json").is_ok());
}

#[test]
fn wrong_usage_has_exit_code_two_and_help_has_none() {
    for line in [
        "quorate topic create",
        "quorate topic create t --type odd",
        "quorate bench produce --rate x",
        "quorate bench failover --kind nosuch",
        "quorate cluster transfer 0",
        "quorate nosuch",
    ] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
    let help = parse("quorate topic --help").unwrap_err();
    assert_eq!((help.kind(), help.exit_code()), (ErrorKind::DisplayHelp, 0));
}

#[test]
fn a_misspelt_command_is_answered_with_the_right_one() {
    let said = parse("quorate topc list").unwrap_err().to_string();
    assert!(said.contains("topic"), "{said}");
}
