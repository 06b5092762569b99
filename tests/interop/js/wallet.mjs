// A wallet of another make: looks at a mint, takes a token of one unit, pays a
// third of it to itself, and gives all of it back as a token.
//
// Usage: node wallet.mjs <mint URL> <unit> <token>
// Prints one JSON object; amounts are decimal strings.
import { Mint, Wallet, getEncodedToken } from '@cashu/cashu-ts';

const [url, unit, token] = process.argv.slice(2);

const sum = (proofs) => proofs.reduce((total, proof) => total + BigInt(proof.amount.toString()), 0n);

async function open() {
  const wallet = new Wallet(url, { unit });
  await wallet.loadMint();
  return wallet;
}

async function states(wallet, proofs) {
  const checked = await wallet.checkProofsStates(proofs);
  return [...new Set(checked.map(({ state }) => state))];
}

const mint = new Mint(url);
const { nuts } = await mint.getInfo();
const { keysets } = await mint.getKeySets();

const payer = await open();
const received = await payer.receive(token);
const { keep, send } = await payer.send(Number(sum(received) / 3n), received);
const before = await states(payer, [...keep, ...send]);

const payee = await open();
const paid = await payee.receive(getEncodedToken({ mint: url, unit, proofs: send }));

const all = [...keep, ...paid];
console.log(JSON.stringify({
  nuts,
  keysets: keysets.map(({ id, unit, active }) => ({ id, unit, active })),
  received: sum(received).toString(),
  kept: sum(keep).toString(),
  paid: sum(paid).toString(),
  states: { before, sent: await states(payee, send), held: await states(payee, all) },
  token: getEncodedToken({ mint: url, unit, proofs: all }),
}));
