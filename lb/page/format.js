// SPDX-License-Identifier: Apache-2.0
// Numbers, times and words as people read them.

const PREFIXES = [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']];

/** 1234567 -> "1.23 M"; nothing known -> "–". */
export function scaled(value, unit = '') {
  if (value === null || value === undefined) return '–';
  for (const [limit, prefix] of PREFIXES) {
    if (Math.abs(value) >= limit) return `${(value / limit).toPrecision(3)} ${prefix}${unit}`;
  }
  const digits = Math.abs(value) < 10 && !Number.isInteger(value) ? 1 : 0;
  return unit ? `${value.toFixed(digits)} ${unit}` : value.toFixed(digits);
}

export function whole(value) {
  return value === null || value === undefined ? '–' : value.toLocaleString('en');
}

/** Seconds as the two largest units: 90061 -> "1d 1h". */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return '–';
  if (seconds < 1) return '< 1s';
  const parts = [];
  let rest = Math.floor(seconds);
  for (const [size, unit] of [[86400, 'd'], [3600, 'h'], [60, 'm'], [1, 's']]) {
    if (rest >= size) {
      parts.push(`${Math.floor(rest / size)}${unit}`);
      rest %= size;
    }
  }
  return parts.slice(0, 2).join(' ');
}

export function clock(time) {
  return new Date(time * 1000).toLocaleTimeString('en-GB');
}

export function since(time) {
  return time ? duration(Math.max(Date.now() / 1000 - time, 0)) : '–';
}

export function words(name) {
  return String(name ?? '–').replaceAll('_', ' ');
}

export function endpoint(address, port) {
  const host = address.includes(':') ? `[${address}]` : address;
  return `${host}:${port === 0 || port === null || port === 'any' ? '*' : port}`;
}

/** The address of a VIP without its prefix length: its name in the API. */
export function host(address) {
  return address.split('/')[0];
}
