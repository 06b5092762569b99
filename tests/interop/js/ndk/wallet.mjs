// A NIP-60 wallet of another make: opens what is on a relay, or writes a wallet
// of its own there.
//
// Usage: node --experimental-websocket wallet.mjs <relay> <secret key> [<mint URL> <token>]
// Prints one JSON object. With a token it makes a wallet for that mint first and
// receives the token.
import NDK, { NDKKind, NDKPrivateKeySigner } from '@nostr-dev-kit/ndk';
import { NDKCashuWallet } from '@nostr-dev-kit/wallet';

const [relay, secret, mint, token] = process.argv.slice(2);
const say = console.log;
// The libraries print to stdout.
console.log = console.info = console.debug = console.error;

const ndk = new NDK({
  explicitRelayUrls: [relay],
  signer: new NDKPrivateKeySigner(secret),
  enableOutboxModel: false,
});
await ndk.connect(5_000);
const { pubkey } = await ndk.signer.user();

async function open() {
  const event = await ndk.fetchEvent({ kinds: [NDKKind.CashuWallet], authors: [pubkey] });
  if (!event) throw new Error('no wallet event');
  const wallet = await NDKCashuWallet.from(event);
  // It opens the tokens only after it has said that it is ready.
  const opened = new Promise((resolve) => wallet.once('balance_updated', resolve));
  await wallet.start({ subId: 'wallet' });
  await opened;
  return wallet;
}

if (token) {
  const made = await NDKCashuWallet.create(ndk, [mint], [relay]);
  await made.start({ subId: 'made' });
  await made.receiveToken(token);
  made.stop();
}
const wallet = await open();
say(JSON.stringify({
  mints: wallet.mints,
  balance: wallet.balance?.amount,
  secrets: wallet.state.getProofEntries().map(({ proof }) => proof.secret),
  privkeys: [...wallet.privkeys.values()].map((signer) => signer.privateKey),
}));
process.exit(0);
