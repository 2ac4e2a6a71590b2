-- Health of a DraftTraining for Argo CD. Every level of the status may be absent.
local health = {status = "Progressing", message = "Waiting for the operator"}
local status = obj.status
if status == nil or status.observedGeneration ~= obj.metadata.generation then
  return health
end

local function is(kind)
  for _, condition in ipairs(status.conditions or {}) do
    if condition.type == kind and condition.status == "True" then
      health.message = (condition.reason or "") .. ": " .. (condition.message or "")
      return true
    end
  end
  return false
end

if is("Complete") then
  health.status = "Healthy"
elseif is("Failed") or is("Stalled") then
  health.status = "Degraded"
elseif is("Suspended") then
  health.status = "Suspended"
else
  health.message = status.phase or "Pending"
  for _, told in ipairs({status.stage or "", (status.progress or {}).percentage or ""}) do
    if told ~= "" then
      health.message = health.message .. " " .. told
    end
  end
end
return health
