//! EndTransaction: a half message is committed or rolled back, through any node.

use quorate_proto::v2::{Code, EndTransactionRequest, EndTransactionResponse, TransactionResolution};

use super::{
    Client, Service,
    wire::{
        status::{Fault, ok},
        validate,
    },
};
use crate::leader::calls::EndTransaction;

impl Service {
    /// Ends a transaction. OK, once more OK for a repeat, 42800 if it ended the other way, 40008 if there is no such transaction.
    pub async fn end_transaction(&self, client: Client, request: EndTransactionRequest) -> EndTransactionResponse {
        let status = match self.try_end(&client, request).await {
            Ok(()) => ok(),
            Err(fault) => fault.into(),
        };
        EndTransactionResponse { status: Some(status) }
    }

    async fn try_end(&self, client: &Client, request: EndTransactionRequest) -> Result<(), Fault> {
        client.id()?;
        let topic = validate::topic(request.topic.as_ref(), &client.namespace)?.to_string();
        let commit = match TransactionResolution::try_from(request.resolution) {
            Ok(TransactionResolution::Commit) => true,
            Ok(TransactionResolution::Rollback) => false,
            Ok(TransactionResolution::Unspecified) | Err(_) => {
                let text =
                    format!("resolution {} is neither COMMIT nor ROLLBACK; send one of them", request.resolution);
                return Err(Fault::new(Code::BadRequest, text));
            }
        };
        if request.transaction_id.is_empty() {
            let text = "the transaction id is empty; use the one that the send was answered with";
            return Err(Fault::new(Code::InvalidTransactionId, text));
        }
        let call = EndTransaction { topic: Some(topic), transaction_id: request.transaction_id, commit };
        self.dispatch.call(call, self.until(client)).await?;
        Ok(())
    }
}
