// Sorts tables by a click on a heading, and adds buttons that copy code. The page is complete
// without it.
"use strict";

function sortKey(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace(/,/g, ""));
  return Number.isNaN(number) ? text : number;
}

function compare(one, other) {
  if (typeof one === typeof other) {
    return one < other ? -1 : Number(one > other);
  }
  return typeof one === "number" ? -1 : 1;
}

function sortTable(table, heading) {
  const ascending = heading.getAttribute("aria-sort") !== "ascending";
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const column = heading.cellIndex;
  rows.sort((one, other) => compare(sortKey(one, column), sortKey(other, column)));
  if (!ascending) {
    rows.reverse();
  }
  for (const other of table.tHead.rows[0].cells) {
    other.removeAttribute("aria-sort");
  }
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  body.append(...rows);
}

function makeSortable(table) {
  for (const heading of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sortTable(table, heading));
    heading.append(button);
  }
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function addCopyButton(code) {
  const button = document.createElement("button");
  button.textContent = "Copy";
  button.className = "copy";
  button.addEventListener("click", async () => {
    await copyText(code.textContent);
    button.textContent = "Copied";
  });
  code.parentElement.append(button);
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("pre.served > code").forEach(addCopyButton);
