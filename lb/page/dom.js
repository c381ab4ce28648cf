// SPDX-License-Identifier: Apache-2.0
// Making and updating elements. Lists are reconciled by key, so that focus, drags and open rows survive an update.

/** An element: h('button', {class: 'x', onclick: f}, 'text', child). */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  apply(element, attributes);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = 'http://www.w3.org/2000/svg';

export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function apply(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value === 'boolean') element[name] = value;
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
}

/** Sets text only if it differs: assigning the same would drop a selection. */
export function text(element, value) {
  const wanted = String(value);
  if (element.textContent !== wanted) element.textContent = wanted;
}

/** Sets or removes an attribute, only if that changes something. */
export function attribute(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** Makes container's children one element per row: create(row) for a new key, update(element, row) for all. */
export function reconcile(container, rows, key, create, update) {
  const known = new Map([...container.children].map((child) => [child.dataset.key, child]));
  let position = container.firstElementChild;
  for (const row of rows) {
    const name = String(key(row));
    let element = known.get(name);
    if (!element) {
      element = create(row);
      element.dataset.key = name;
    }
    known.delete(name);
    if (element === position) position = position.nextElementSibling;
    else container.insertBefore(element, position);
    update(element, row);
  }
  for (const stale of known.values()) stale.remove();
}

/** A message that comes and goes by itself; also read out. */
export function toast(message, kind = 'info') {
  const box = h('p', { class: `toast ${kind}` }, message);
  document.getElementById('toasts').append(box);
  setTimeout(() => box.remove(), kind === 'error' ? 9000 : 4000);
}
