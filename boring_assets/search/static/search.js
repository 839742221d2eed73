"use strict";
// A picture is posted as it is; the answer names the question that it has become.
const message = document.getElementById("message");

async function searchBy(file) {
  message.textContent = "Looking at the picture ...";
  let said;
  try {
    const answer = await fetch("/picture", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
    said = await answer.json();
  } catch (error) {
    said = { error: "The picture could not be sent." };
  }
  if (said.picture) {
    const asked = new URLSearchParams(new FormData(document.getElementById("search")));
    asked.delete("q");
    asked.set("picture", said.picture);
    location.search = asked.toString();
  } else {
    message.textContent = said.error;
  }
}

document.getElementById("picture").addEventListener("change", (event) => {
  if (event.target.files.length) searchBy(event.target.files[0]);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", () => document.body.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) searchBy(file);
  else message.textContent = "Drop a picture file.";
});
