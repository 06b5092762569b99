//! `hashpit audit …`: what anyone may check.

use std::io::{IsTerminal, stderr};

use anyhow::{Context, bail};
use clap::Subcommand;
use hashpit_exchange::audit::{Collected, Finding, Report, audit, collect, complete};
use nostr_sdk::{PublicKey, RelayUrl, ToBech32};
use serde_json::json;

use crate::config;
use crate::terminal::{bar, grouped, printable};
use crate::trade::args::At;

/// `hashpit audit`.
#[derive(Debug, clap::Args)]
pub struct Audit {
    #[command(subcommand)]
    pub command: AuditCommand,
}

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Replay an exchange's journal from public events, and name the first
    /// sequence that lies, forks, skips or reorders.
    ///
    /// The status is 0 if nothing is wrong, and 1 otherwise. Give two relays or
    /// more: an offer that both have and the exchange never answered shows only
    /// then.
    Exchange(At),
}

/// `hashpit audit …`.
pub async fn run(options: Audit, settings: &config::Trade) -> anyhow::Result<()> {
    let AuditCommand::Exchange(at) = options.command;
    let key = at.exchange.or(settings.exchange);
    let key = key.context("which exchange? name it with --exchange <npub>")?;
    let relays = if at.relays.is_empty() { &settings.relays } else { &at.relays };
    if relays.is_empty() {
        bail!("which relays? name some that the exchange writes to with --relay <url>");
    }
    let (report, silent) = examine(key, relays).await?;
    if at.json {
        println!("{}", as_json(&report, &silent));
    } else {
        print!("{}", in_words(&report, &silent));
    }
    match report.findings.first() {
        None => Ok(()),
        Some(first) => bail!("the first thing that is wrong: {}", line(first)),
    }
}

async fn examine(
    exchange: PublicKey,
    relays: &[RelayUrl],
) -> anyhow::Result<(Report, Vec<RelayUrl>)> {
    let progress = stderr().is_terminal().then(|| bar("journal"));
    let collected = collect(exchange, relays, |done, all| {
        if let Some(progress) = &progress {
            progress.set_length(all);
            progress.set_position(done);
        }
    });
    let collected = collected.await?;
    if let Some(progress) = progress {
        progress.finish_and_clear();
    }
    let (mut collected, mut report) = judge(exchange, collected).await?;
    let missed = report.withheld();
    if !missed.is_empty() {
        complete(exchange, relays, &mut collected, &missed).await?;
        (collected, report) = judge(exchange, collected).await?;
    }
    Ok((report, collected.silent))
}

/// Checking signatures would hold up everything else on this thread.
async fn judge(exchange: PublicKey, collected: Collected) -> anyhow::Result<(Collected, Report)> {
    let judged = tokio::task::spawn_blocking(move || {
        let report = audit(exchange, &collected.evidence);
        (collected, report)
    });
    Ok(judged.await?)
}

fn as_json(report: &Report, silent: &[RelayUrl]) -> serde_json::Value {
    let findings = report.findings.iter().map(|finding| {
        json!({
            "seq": finding.seq.to_string(),
            "what": finding.to_string(),
            "may_be_the_relays": !silent.is_empty() && finding.lie.may_be_the_relays(),
        })
    });
    json!({
        "clean": report.is_clean(),
        "entries": report.entries,
        "matches": report.matches,
        "lots": report.lots.to_string(),
        "settlements": report.settlements,
        "completed": report.completed,
        "checkpoints": report.checkpoints,
        "offers_on_two_relays": report.offers,
        "state": hex::encode(report.digest),
        "findings": findings.collect::<Vec<_>>(),
        "silent_relays": silent,
    })
}

fn in_words(report: &Report, silent: &[RelayUrl]) -> String {
    let Ok(exchange) = report.exchange.to_bech32();
    let mut lines = vec![
        format!("exchange {exchange}"),
        format!("  {} journal entries followed, from the first on", grouped(report.entries)),
        format!(
            "  {} matches and {} settlements derived anew; {} matches were completed",
            grouped(report.matches),
            grouped(report.settlements),
            grouped(report.completed)
        ),
        format!("  {} checkpoints agree", grouped(report.checkpoints)),
        format!("  {} offers seen on two relays were looked for", grouped(report.offers)),
        format!("  state {}", hex::encode(report.digest)),
    ];
    if !silent.is_empty() {
        let names: Vec<_> = silent.iter().map(ToString::to_string).collect();
        lines
            .push(format!("  {} did not tell all; what is missing may be there", names.join(", ")));
    }
    lines.push(match report.findings.len() {
        0 => "Nothing is wrong: every match follows from the journal.".to_owned(),
        1 => "1 thing is wrong:".to_owned(),
        many => format!("{many} things are wrong:"),
    });
    lines.extend(report.findings.iter().map(|finding| format!("  {}", line(finding))));
    lines.join("\n") + "\n"
}

/// A finding in one line: it may quote the exchange.
fn line(finding: &Finding) -> String {
    printable(&finding.to_string()).replace('\n', " ")
}
