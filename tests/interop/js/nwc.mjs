// Two wallets by Nostr Wallet Connect, through a client of another make: the
// first pays held invoices of the second, one that is settled and one that is
// cancelled.
//
// Usage: node nwc.mjs <buyer's URI> <seller's URI>
// Prints one JSON object; the states are the seller's, as they came.
import { createHash, randomBytes } from 'node:crypto';
import { NWCClient } from '@getalby/sdk/nwc';

const [buyer, seller] = process.argv
  .slice(2)
  .map((nostrWalletConnectUrl) => new NWCClient({ nostrWalletConnectUrl }));

const waiting = new Map();
const told = (type, hash) => new Promise((tell) => waiting.set(type + hash, tell));
await seller.subscribeNotifications(({ notification_type: type, notification }) =>
  waiting.get(type + notification.payment_hash)?.(notification),
);

const { block_height: height } = await seller.getInfo();

async function hold() {
  const preimage = randomBytes(32);
  const hash = createHash('sha256').update(preimage).digest('hex');
  const state = async () => (await seller.lookupInvoice({ payment_hash: hash })).state;
  const { invoice } = await seller.makeHoldInvoice({
    amount: 50_000_123,
    description: '12,000 ehash',
    expiry: 600,
    payment_hash: hash,
    min_cltv_expiry_delta: 144,
  });
  const states = [await state()];
  const accepted = told('hold_invoice_accepted', hash);
  const paid = buyer.payInvoice({ invoice }).catch(({ code }) => ({ code }));
  const { settle_deadline: deadline } = await accepted;
  states.push(await state());
  return { preimage: preimage.toString('hex'), hash, state, states, paid, deadline };
}

const taken = await hold();
const received = told('payment_received', taken.hash);
await seller.settleHoldInvoice({ preimage: taken.preimage });
const { preimage } = await taken.paid;
if (preimage !== taken.preimage) throw new Error('paid, and no preimage');
await received;
taken.states.push(await taken.state());

const returned = await hold();
await seller.cancelHoldInvoice({ payment_hash: returned.hash });
const { code } = await returned.paid;
returned.states.push(await returned.state());

console.log(
  JSON.stringify({
    encryption: seller.encryptionType,
    settled: taken.states,
    cancelled: returned.states,
    refused: code,
    blocks_left: taken.deadline - height,
  }),
);
process.exit(0);
