use std::{fmt::Write as _, time::Duration};

use async_trait::async_trait;
use lettre::{
    AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    message::{Mailbox, header::ContentType},
    transport::smtp::{self, authentication::Credentials},
};

use crate::{
    connections::{EmailConnection, MailSecurity, mailboxes},
    model::{AlertEvent, AlertEventKind, News},
    sinks::{Notifier, NotifyError, SoFar, slack::plain},
    util::{
        secret::ExposeSecret,
        text::{clip, figure, one_line},
    },
};

/// Of one mail, from the first greeting to the last word.
const TIMEOUT: Duration = Duration::from_secs(20);
/// What only a person can mend is tried again this often.
const PERSON: Duration = Duration::from_mins(10);
/// A line of a header.
const SUBJECT: usize = 150;
const TEXT: usize = 2_000;
/// Of a mail: a group of any size stays readable.
const ALERTS: usize = 50;

/// Mails the news of a group, as plain text. Mails of one group share a thread.
pub struct EmailNotifier {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
}

impl EmailNotifier {
    /// Touches no network.
    ///
    /// # Errors
    /// A sentence: TLS cannot be set up for this host.
    pub fn new(connection: &EmailConnection) -> Result<Self, String> {
        let host = connection.host.as_str();
        let builder = match connection.security {
            MailSecurity::Starttls => AsyncSmtpTransport::<Tokio1Executor>::starttls_relay(host),
            MailSecurity::Tls => AsyncSmtpTransport::<Tokio1Executor>::relay(host),
            MailSecurity::None => Ok(AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)),
        };
        let mut builder = builder.map_err(|error| format!("mail server {host}: {error}"))?.timeout(Some(TIMEOUT));
        if let Some(port) = connection.port {
            builder = builder.port(port);
        }
        if let Some(username) = &connection.username {
            let password = connection.password.as_ref().map(|password| password.expose_secret().trim().to_owned()).unwrap_or_default();
            builder = builder.credentials(Credentials::new(username.clone(), password));
        }
        Ok(Self { transport: builder.build(), from: connection.from.clone() })
    }

    /// A greeting, for `validate --live`; a sentence on success.
    ///
    /// # Errors
    /// Why the server does not answer.
    pub async fn probe(&self) -> Result<String, String> {
        match self.transport.test_connection().await {
            Ok(true) => Ok("the mail server answers".to_owned()),
            Ok(false) => Err("the mail server does not answer".to_owned()),
            Err(error) => Err(cause(&error)),
        }
    }
}

#[async_trait]
impl Notifier for EmailNotifier {
    /// A mail for each mailbox: one that is refused keeps it from no other.
    async fn notify(&self, news: &News, target: &str, so_far: &mut SoFar) -> Result<(), NotifyError> {
        let mailboxes = mailboxes(target).map_err(NotifyError::Dead)?;
        let thread = so_far.thread.clone();
        let mut refused = None;
        for to in mailboxes.iter().skip(usize::try_from(so_far.pages).unwrap_or(usize::MAX)) {
            let mail = mail(news, &self.from, to, thread.as_deref()).map_err(NotifyError::Dead)?;
            match self.send(mail).await {
                Ok(()) => so_far.thread = so_far.thread.take().or_else(|| Some(message_id(&news.id))),
                Err(Refused { message, lasting: true }) if mailboxes.len() > 1 => {
                    tracing::error!(to = %to, error = %message, "a mailbox refuses an alert that others get");
                    refused = Some(message);
                }
                Err(Refused { message, lasting }) => {
                    return Err(NotifyError::Retry { message, retry_after: lasting.then_some(PERSON), unsure: false });
                }
            }
            so_far.took_one();
        }
        match refused {
            Some(message) if so_far.thread.is_none() => {
                so_far.pages = 0;
                Err(NotifyError::Retry { message, retry_after: Some(PERSON), unsure: false })
            }
            _ => Ok(()),
        }
    }
}

impl EmailNotifier {
    async fn send(&self, mail: Message) -> Result<(), Refused> {
        match tokio::time::timeout(TIMEOUT, self.transport.send(mail)).await {
            Ok(Ok(_)) => Ok(()),
            // What lasts takes a person: a mailbox to be made, a sender to be allowed.
            Ok(Err(error)) => Err(Refused { message: format!("mail: {}", cause(&error)), lasting: error.is_permanent() }),
            Err(_) => Err(Refused { message: format!("no answer from the mail server within {TIMEOUT:?}"), lasting: false }),
        }
    }
}

/// Why a mail was not taken. A mail that came twice has the same id, and is shown once by most mailboxes: nothing is unsure.
struct Refused {
    message: String,
    lasting: bool,
}

fn cause(error: &smtp::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    one_line(&cause.to_string(), 200)
}

fn message_id(id: &str) -> String {
    format!("<{id}@assayd>")
}

fn mail(news: &News, from: &Mailbox, to: &Mailbox, thread: Option<&str>) -> Result<Message, String> {
    let mut mail =
        Message::builder().from(from.clone()).to(to.clone()).subject(subject(news)).message_id(Some(message_id(&news.id))).header(ContentType::TEXT_PLAIN);
    if let Some(thread) = thread {
        mail = mail.in_reply_to(thread.to_owned()).references(thread.to_owned());
    }
    mail.body(body(news)).map_err(|error| format!("mail: {error}"))
}

fn subject(news: &News) -> String {
    let told = told(news);
    let firing = told.iter().filter(|event| event.kind != AlertEventKind::Resolved).count();
    let what = match told {
        [event] if event.kind == AlertEventKind::Notice => return one_line(&event.summary, SUBJECT),
        [event] => format!("{} · {}", event.alert, event.monitor),
        [event, ..] if told.iter().all(|other| other.monitor == event.monitor) => format!("{} alerts · {}", told.len(), event.monitor),
        _ => format!("{} alerts", told.len()),
    };
    one_line(&if firing == 0 { format!("[resolved] {what}") } else { format!("[firing] {what}") }, SUBJECT)
}

fn told(news: &News) -> &[AlertEvent] {
    if news.members.is_empty() { &news.changes } else { &news.members }
}

fn body(news: &News) -> String {
    let mut text = String::new();
    for event in told(news).iter().take(ALERTS) {
        let _ = writeln!(text, "{}\n", clip(&plain(event), TEXT));
        for line in &facts(event) {
            let _ = writeln!(text, "    {line}");
        }
        text.push('\n');
    }
    if told(news).len() > ALERTS {
        let _ = writeln!(text, "… and {} more", told(news).len() - ALERTS);
    }
    text
}

fn facts(event: &AlertEvent) -> Vec<String> {
    if event.kind == AlertEventKind::Notice {
        return event.lines.iter().flat_map(|part| part.lines()).map(|line| one_line(line, TEXT)).collect();
    }
    let mut facts = vec![format!("condition: {}", one_line(&event.condition, TEXT))];
    if let Some(value) = event.value {
        facts.push(format!("measured:  {}", figure(value)));
    }
    facts.push(format!("since:     {}", event.since.strftime("%Y-%m-%d %H:%M UTC")));
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::receivers::{example, news};

    #[test]
    fn a_mail_says_what_fires_and_carries_no_header_of_a_traces_making() {
        let hostile = AlertEvent { alert: "low\r\nBcc: all@example.com".to_owned(), ..example(AlertEventKind::Firing) };
        let from = "assayd <assayd@example.com>".parse().unwrap();
        let mail = mail(&news(vec![hostile]), &from, &"ops@example.com".parse().unwrap(), Some("<key-0@assayd>")).unwrap();
        let text = String::from_utf8(mail.formatted()).unwrap();
        let (head, _) = text.split_once("\r\n\r\n").unwrap();
        assert!(!head.lines().any(|line| line.starts_with("Bcc")), "{head}");
        for part in ["To: ops@example.com", "Message-ID: <key-1@assayd>", "In-Reply-To: <key-0@assayd>"] {
            assert!(head.contains(part), "no `{part}` in {head}");
        }
        assert_eq!(mailboxes("nobody").unwrap_err(), "`nobody` is no address of a mailbox");
    }
}
