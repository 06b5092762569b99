//! What people look at: tables, QR codes, progress bars, questions. Results go to
//! stdout, everything else to stderr.

use std::io::{self, IsTerminal, Read};
use std::time::Duration;

use anyhow::{Context, bail};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use nostr_sdk::Timestamp;
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;

/// The password of the wallet's words, for use without a terminal.
pub const PASSWORD: &str = "HASHPIT_PASSWORD";

/// A table with a head; the columns named in `numbers` are set flush right.
pub fn table(head: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head.iter().copied());
    for column in numbers {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Prints a table, its lines without trailing blanks.
pub fn print(table: &Table) {
    for line in table.lines() {
        println!("{}", line.trim_end());
    }
}

/// 1234567 as `1 234 567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).expect("digits are ASCII"))
        .collect();
    groups.join(" ")
}

/// Somebody else's words, without what a terminal would obey.
pub fn printable(text: &str) -> String {
    let control = |letter: char| letter.is_control() && letter != '\n';
    text.replace(control, "\u{fffd}")
}

/// How long ago, in the largest unit that fits.
pub fn ago(at: u64) -> String {
    let seconds = Timestamp::now().as_secs().saturating_sub(at);
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// A QR code of half blocks, or why there is none.
pub fn qr(text: &str) -> anyhow::Result<String> {
    let code = QrCode::new(text.as_bytes())
        .map_err(|_| anyhow::anyhow!("{} characters do not fit in one QR code", text.len()))?;
    Ok(code.render::<Dense1x2>().build())
}

/// A bar on stderr; none without a terminal.
pub fn bar(what: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {prefix} {wide_bar} {pos}/{len} {msg}");
    let bar = ProgressBar::new(0).with_prefix(what);
    bar.set_style(style.expect("the template is well formed"));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// The password that the words are encrypted with.
pub fn password() -> anyhow::Result<String> {
    if let Ok(password) = std::env::var(PASSWORD) {
        return Ok(password);
    }
    if !io::stdin().is_terminal() {
        bail!("the wallet is encrypted; give its password in {PASSWORD}");
    }
    rpassword::prompt_password("Password: ").context("cannot read the password")
}

/// A new password, typed twice.
pub fn new_password() -> anyhow::Result<String> {
    if let Ok(password) = std::env::var(PASSWORD) {
        return non_empty(password);
    }
    if !io::stdin().is_terminal() {
        bail!("give the new password in {PASSWORD}, or run this in a terminal");
    }
    let password = rpassword::prompt_password("New password: ")?;
    if password != rpassword::prompt_password("The same again: ")? {
        bail!("the two passwords differ; nothing was changed");
    }
    non_empty(password)
}

fn non_empty(password: String) -> anyhow::Result<String> {
    if password.is_empty() {
        bail!("an empty password protects nothing; choose another");
    }
    Ok(password)
}

/// What stdin holds; in a terminal, asks for it.
pub fn read(what: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    if io::stdin().is_terminal() {
        eprintln!("{what}, then press Enter:");
        io::stdin().read_line(&mut text).context("cannot read stdin")?;
    } else {
        io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
    }
    Ok(text.trim().to_owned())
}

/// The next line of stdin; in a terminal, asks for it.
pub fn line(what: &str) -> anyhow::Result<String> {
    if io::stdin().is_terminal() {
        eprintln!("{what}, then press Enter:");
    }
    let mut text = String::new();
    io::stdin().read_line(&mut text).context("cannot read stdin")?;
    Ok(text.trim().to_owned())
}

/// A remote signer's URI: `-` stands for the next line of stdin, since everybody
/// on the machine may read arguments, and the URI may hold a secret.
pub fn signer(given: String) -> anyhow::Result<String> {
    if given == "-" { line("Type the remote signer's bunker://…") } else { Ok(given) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_words_do_not_move_the_cursor() {
        let said = printable("no\u{1b}[2J\u{9b}1A\r\u{7}, really\nnot");
        assert_eq!(said, "no\u{fffd}[2J\u{fffd}1A\u{fffd}\u{fffd}, really\nnot");
    }

    #[test]
    fn digits_stand_in_threes() {
        let cases = [(0, "0"), (999, "999"), (1000, "1 000"), (1_234_567, "1 234 567")];
        for (number, text) in cases {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn a_code_that_would_not_fit_says_so() {
        assert!(qr("cashuB").unwrap().lines().count() > 10);
        assert!(qr(&"x".repeat(3000)).unwrap_err().to_string().contains("3000"));
    }
}
