//! Telemetry, Heartbeat and NotifyClientTermination: what clients say about themselves.
//!
//! Settings are answered by any node from what it knows, leader or not: several clients do not start before they have them. The
//! stream then stays open for what a broker may want to tell a client: here, that a producer is asked about its half messages. Nothing
//! depends on it being open, or open here; a half message waits until some producer of its topic has a stream somewhere.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, stream};
use quorate_proto::{
    names::GroupName,
    v2::{
        HeartbeatRequest, HeartbeatResponse, NotifyClientTerminationRequest, NotifyClientTerminationResponse,
        RecoverOrphanedTransactionCommand, Settings, TelemetryCommand, settings::PubSub, telemetry_command::Command,
    },
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{
    Client, Service,
    producers::Seat,
    unread::{self, Asked},
    wire::{
        convert,
        settings::{self, GroupSettings},
        status::{Fault, ok},
        validate,
    },
};
use crate::{leader::checks::Check, machine::Group};

/// The answers of a Telemetry stream.
pub(crate) type Answers = Pin<Box<dyn Stream<Item = Result<TelemetryCommand, Status>> + Send>>;

/// What a Telemetry stream needs while it is open.
struct Open {
    service: Arc<Service>,
    client: Client,
    inbound: Streaming<TelemetryCommand>,
    seat: Seat,
    closing: CancellationToken,
    /// The last answer is given.
    ended: bool,
}

impl Service {
    /// Answers each Settings of the client; ends when the client ends or the listener closes.
    pub fn telemetry(self: Arc<Self>, client: Client, inbound: Streaming<TelemetryCommand>) -> Answers {
        let closing = self.closing();
        let seat = self.producers.seat();
        let open = Open { service: self, client, inbound, seat, closing, ended: false };
        Box::pin(stream::unfold(open, |mut open| async {
            let answer = open.next().await?;
            Some((Ok(answer), open))
        }))
    }

    fn settings(&self, client: &Client, asked: Settings) -> Result<Settings, Fault> {
        self.heard(client.id()?);
        let group = match &asked.pub_sub {
            Some(PubSub::Subscription(subscription)) => {
                self.group(&validate::group(subscription.group.as_ref(), &client.namespace)?)
            }
            Some(PubSub::Publishing(_)) | None => GroupSettings::default(),
        };
        settings::reply(asked, client.language, &group, &self.config.limits)
    }

    fn group(&self, group: &GroupName) -> GroupSettings {
        let known = |group: &Group| GroupSettings { fifo: group.is_fifo(), retry: group.retry().clone() };
        self.shared.read(|machine| machine.group(group).map(known)).unwrap_or_default()
    }

    /// The client is there. Always fine: no session has to be known for it.
    pub fn heartbeat(&self, client: &Client, _request: &HeartbeatRequest) -> HeartbeatResponse {
        let status = match client.id() {
            Ok(id) => {
                self.heard(id);
                ok()
            }
            Err(fault) => fault.into(),
        };
        HeartbeatResponse { status: Some(status) }
    }

    /// The client goes; what it holds comes back when its time runs out.
    pub fn notify_client_termination(
        &self,
        client: &Client,
        _request: &NotifyClientTerminationRequest,
    ) -> NotifyClientTerminationResponse {
        let status = match client.id() {
            Ok(id) => {
                self.sessions.remove(id);
                ok()
            }
            Err(fault) => fault.into(),
        };
        NotifyClientTerminationResponse { status: Some(status) }
    }
}

impl Open {
    /// The next answer, or the next check of a half message. Commands other than Settings answer questions that this broker does not ask,
    /// and are passed over.
    async fn next(&mut self) -> Option<TelemetryCommand> {
        loop {
            if self.ended {
                return None;
            }
            let command = tokio::select! {
                command = self.inbound.message() => command,
                check = self.seat.next() => match self.question(check) {
                    Some(question) => return Some(question),
                    None => continue,
                },
                () = self.closing.cancelled() => return None,
            };
            let command = match command {
                Ok(command) => command?,
                Err(status) => {
                    // Where a message ends is not known after one that could not be read. Otherwise the client is gone.
                    self.ended = true;
                    let fault = unread::fault(Asked::Messaging, &status, &self.service.config.limits)?;
                    return Some(settings::command(Err(fault)));
                }
            };
            match command.command {
                Some(Command::Settings(asked)) => {
                    self.note_topics(&asked);
                    return Some(settings::command(self.service.settings(&self.client, asked)));
                }
                Some(
                    Command::ThreadStackTrace(_)
                    | Command::VerifyMessageResult(_)
                    | Command::RecoverOrphanedTransactionCommand(_)
                    | Command::PrintThreadStackTraceCommand(_)
                    | Command::VerifyMessageCommand(_)
                    | Command::ReconnectEndpointsCommand(_)
                    | Command::NotifyUnsubscribeLiteCommand(_),
                )
                | None => {}
            }
        }
    }

    /// Takes note of the topics that a producer sends to, as its settings list them.
    fn note_topics(&self, settings: &Settings) {
        if let Some(PubSub::Publishing(publishing)) = &settings.pub_sub {
            let name = |topic| validate::topic(Some(topic), &self.client.namespace).ok();
            self.seat.listen(publishing.topics.iter().filter_map(name).map(|name| name.to_string()));
        }
    }

    /// A check as the producer gets it. `None` for bytes that are no message, which only a bug can bring about.
    fn question(&self, check: Check) -> Option<TelemetryCommand> {
        let transaction_id = check.transaction_id.clone();
        let message = Some(convert::to_half_message(check, &self.service.address)?);
        let command = RecoverOrphanedTransactionCommand { message, transaction_id };
        let command = Command::RecoverOrphanedTransactionCommand(command);
        Some(TelemetryCommand { status: Some(ok()), command: Some(command) })
    }
}
