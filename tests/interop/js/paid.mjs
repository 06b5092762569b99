// A payee of another make: reads our payment requests, makes its own, and opens
// and receives what they are paid with.
//
// Usage: node paid.mjs read <creqA…>
//        node paid.mjs ask <id> <amount> <unit> <mint URL> <nprofile>
//        node paid.mjs receive <secret key, hex> <gift wrap, JSON>
// Prints one JSON object; amounts are decimal strings.
import {
  PaymentRequest, PaymentRequestTransportType, Wallet, getEncodedToken, getTokenMetadata,
} from '@cashu/cashu-ts';
import { unwrapEvent } from 'nostr-tools/nip59';
import { hexToBytes } from 'nostr-tools/utils';

const [command, ...args] = process.argv.slice(2);

function read(text) {
  const request = PaymentRequest.fromEncodedRequest(text);
  const { id, amount, unit, mints, description, transport } = request;
  return { id, amount: amount?.toString(), unit, mints, description, transport };
}

function ask(id, amount, unit, mint, target) {
  const transport = [{ type: PaymentRequestTransportType.NOSTR, target, tags: [['n', '17']] }];
  const request = new PaymentRequest(transport, id, Number(amount), unit, [mint], 'tea');
  return { request: request.toEncodedRequest() };
}

async function receive(secret, wrap) {
  const rumor = unwrapEvent(JSON.parse(wrap), hexToBytes(secret));
  const payload = rumor.content.startsWith('cashuB') ? null : JSON.parse(rumor.content);
  const { mint, unit } = payload ?? getTokenMetadata(rumor.content);
  const wallet = new Wallet(mint, { unit });
  await wallet.loadMint();
  const token = payload ? getEncodedToken({ mint, unit, proofs: payload.proofs }) : rumor.content;
  const proofs = await wallet.receive(token);
  const amount = proofs.reduce((total, proof) => total + BigInt(proof.amount.toString()), 0n);
  return {
    kind: rumor.kind, id: payload?.id, unit, amount: amount.toString(),
    token: getEncodedToken({ mint, unit, proofs }),
  };
}

const commands = { read, ask, receive };
console.log(JSON.stringify(await commands[command](...args)));
