// SPDX-License-Identifier: Apache-2.0
// Each gateway keeps one colour everywhere on the page, so that a VIP's way can be followed by eye.

const COUNT = 8;
let order = [];

/** Names in any order; they keep the colours they have. */
export function assignColours(names) {
  const fresh = names.filter((name) => !order.includes(name)).sort();
  order = [...order, ...fresh];
}

export function colour(name) {
  const index = order.indexOf(name);
  return index < 0 ? 'hue-none' : `hue-${index % COUNT}`;
}
